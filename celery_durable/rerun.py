"""A new execution of a call that was made before, which shares the beginning of its journal.

What lies before the chosen step is copied and is not done again, guarded results included. The step itself and all
that comes after it are new: their idempotency keys are made of the new execution's id. Keys that the application has
named itself (``key=``) are the same, and what was done under one is not done again.

Children that ended before the chosen step are shared with what they came to. The copy says so under the ids that they
would have as children of the new execution: so it needs nothing of the old one, and a body that diverges finds them.

Promises that were made before it are shared as they are, kept or not: whoever was given one has no other. The new
execution has a row of its own for each, which is settled together with the old one.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from . import envelope as envelopes
from . import starting, timeline
from .afresh import as_new_call
from .errors import UnknownStep, WrongState
from .faults import reached
from .identity import call_hash, child_id, promise_id
from .packing import unpack
from .publish import publish_stored
from .runtime import Runtime
from .saga import UNDO
from .store import Operations
from .store.copying import BRINGING, Prefix, copy_prefix
from .store.records import FINAL_STATES, META, PARKED_STATES, EntryKind, Execution, Journaled, PayloadKind
from .store.recovery import Published

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy.engine import Connection

    from .codec import Codec
    from .timeline import Step, Timeline, Waited

__all__ = ["rerun"]

_PLACE: Final = re.compile(r"(\d+\.\d+/)*\d+")
#: Steps that an error lists.
_LISTED: Final = 20
_CHILDREN: Final = " The tasks that it has started are not shared, and not cancelled."
_DOUBT: Final = " If nobody knows whether its effect happened, find out first."
#: No task has this name.
_RERUN: Final = "\0rerun"


def rerun(
    app: Celery,
    execution_id: str,
    from_step: int | str | None = None,
    *,
    durable_id: str | None = None,
    callbacks: bool = True,
) -> str:
    """Start a new execution of the same message.

    :param from_step: position or name of the first step that is done anew; None: all of them.
    :param durable_id: the new execution's id; asked for twice, it is started once.
    :param callbacks: False: without links and without the rest of its chain.
    :returns: the id of the new execution.
    :raises UnknownExecution, UnknownStep, WrongState, DurableIdConflict, ConfigurationError, PayloadError,
        JournalUnavailable: see :meth:`~.handle.ExecutionHandle.rerun`.
    """
    runtime = Runtime.of(app)
    operations = Operations(runtime.database, namespace=runtime.settings.namespace)
    new_id = str(uuid.uuid4()) if durable_id is None else starting.check_id(durable_id)
    source = operations.get(execution_id)
    _check_state(source)
    stored = operations.payload(source.pk, PayloadKind.ENVELOPE)
    if stored is None:
        raise WrongState(
            f"execution {execution_id} ran eagerly, so that its message was not stored. Call its task again."
        )
    rows = operations.entries(source.pk, source.generation, values=False)
    promised = runtime.journal.of_kind(EntryKind.PROMISE, source.pk, source.generation, source.generation)
    prefix = _prefix(source, rows, promised, runtime.codec, from_step, new_id)
    message = as_new_call(app, envelopes.unpack(stored, runtime.envelope_codec), new_id, callbacks=callbacks)
    published = Published(
        new_id,
        source.task,
        0,
        envelopes.pack(message, runtime.envelope_codec),
        replacements=source.replacements,
        args_hash=None if durable_id is None else call_hash(_RERUN, (source.id, prefix.position, callbacks), {}),
    )

    def then(connection: Connection, keys: Sequence[int]) -> None:
        copy_prefix(connection, source, prefix, keys[0])
        reached("rerun.before_commit", source.id)

    now = f"as a rerun of {source.id} from position {prefix.position}"
    [pk] = starting.record(app, runtime, [published], now=now, then=then)
    reached("rerun.after_record", source.id)
    if pk is not None:
        publish_stored(app, message, pk)
    return new_id


def _check_state(source: Execution) -> None:
    if source.pruned_at is not None:
        raise WrongState(
            f"execution {source.id} was pruned: its message and its journal are gone. Call its task again."
        )
    if source.state not in FINAL_STATES | PARKED_STATES:
        raise WrongState(
            f"execution {source.id} is {source.state}; only one that has ended, or is parked, can be run anew: what "
            "this one will still do would be done twice. Wait for its end, or cancel it."
        )


# -- where the new one begins -------------------------------------------------------------------------------------


def _prefix(
    source: Execution,
    rows: Sequence[Journaled],
    promised: Sequence[Journaled],
    codec: Codec,
    from_step: int | str | None,
    new_id: str,
) -> Prefix:
    """
    :param rows: the journal, without values and tokens.
    :param promised: its entries that have tokens.
    """
    found = timeline.read(rows, codec, source.state)
    found.steps = [step for step in found.steps if not step.position.startswith(UNDO)]
    position = 0 if from_step is None else _position(source, found, from_step)
    if position and any(row.kind == EntryKind.UNDOING for row in rows):
        raise WrongState(
            f"what execution {source.id} did was undone, so that none of it can be shared. Run all of it anew: leave "
            "from_step out."
        )
    shared = [step for step in found.steps if _root(step.position) < position]
    for step in shared:
        if not step.finished:
            raise _unfinished(source, "step", step, f" (it is {step.outcome})", _DOUBT)
    for wait in found.waits:
        if _root(wait.position) < position and wait.outcome == "open":
            raise _unfinished(source, wait.kind, wait, "", _CHILDREN if wait.kind == "call" else "")
    cut: int | None = None
    bringing = [row for row in [*rows, *promised] if row.kind in BRINGING and _root_of(row) < position]
    instead, ids = _adopted(source, bringing, codec, new_id)
    for row in rows:
        if row.kind == EntryKind.CHECKPOINT and not row.scope and row.position < position:
            steps = unpack(row)
            if steps[-1].position >= position:
                cut = row.position
                instead += [step for step in steps if step.position < position]
    scopes = {row.scope for row in rows if row.scope}
    taken = sorted(scope for scope in scopes if scope == META or (scope[0] != "#" and _root(scope) < position))
    return Prefix(source.generation, position, taken, len(shared), cut, instead, ids)


def _adopted(
    source: Execution, rows: Sequence[Journaled], codec: Codec, new_id: str
) -> tuple[list[Journaled], dict[str, str]]:
    """The calls and promises among these entries as they would stand if the new execution had made them.

    :returns: the entries; and the ids of all rows in the table of promises, each with the new one.
    """
    instead = []
    ids: dict[str, str] = {}
    for row in rows:
        if row.codec is None or row.payload is None:
            continue
        word = "call" if row.kind == EntryKind.CALL else "promise"
        where = f"the {word} {row.name!r} (position {row.position}) of execution {source.id}"
        kept = codec.decode(row.codec, row.payload, where)
        if row.kind == EntryKind.CALL:
            for child in kept:
                ids[child["id"]] = child_id(source.namespace, new_id, *child["of"])
                child["id"] = ids[child["id"]]
        else:
            # Journals from before revision 0003 do not say of what it was made.
            new_row = promise_id(source.namespace, new_id, *kept["of"]) if "of" in kept else uuid.uuid4().hex
            ids[kept.get("row", kept["id"])] = new_row
            kept["row"] = new_row
        stored_codec, payload = codec.encode(kept, where)
        instead.append(row._replace(codec=stored_codec, payload=payload))
    return instead, ids


def _unfinished(source: Execution, what: str, item: Step | Waited, state: str, advice: str) -> WrongState:
    return WrongState(
        f"{what} {item.name!r} (position {item.position}) of execution {source.id} has not ended{state}, so that it "
        f"cannot be shared: from_step={_root(item.position)} or less begins before it.{advice}"
    )


def _position(source: Execution, found: Timeline, from_step: int | str) -> int:
    """The position of the body that is meant.

    :raises UnknownStep: when there is none, or it is not clear which.
    """
    if isinstance(from_step, bool) or not isinstance(from_step, (int, str)):
        raise _unknown(source, found, f"from_step = {from_step!r} is neither a position nor a name")
    if isinstance(from_step, str):
        if not _PLACE.fullmatch(from_step):
            return _named(source, found, from_step)
        if "/" in from_step:
            raise _in_branch(source, from_step)
        from_step = int(from_step)
    places = [item.position for item in _items(found)] + [scope.position for scope in found.scopes]
    places += [w.position for w in found.waits]
    end = max((_root(place) + 1 for place in places), default=0)
    if not 0 <= from_step <= end:
        raise _unknown(source, found, f"there is no position {from_step}; the journal ends at {end}")
    return from_step


def _named(source: Execution, found: Timeline, name: str) -> int:
    named = [item for item in _items(found) if item.name == name]
    places = [item.position for item in named]
    if not places:
        raise _unknown(source, found, f"no step is named {name!r}")
    if len(places) > 1:
        what = "steps" if all(isinstance(item, timeline.Step) for item in named) else "places"
        raise _unknown(source, found, f"{len(places)} {what} are named {name!r}: say which by its position", name)
    if "/" in places[0]:
        raise _in_branch(source, places[0])
    return int(places[0])


def _in_branch(source: Execution, place: str) -> UnknownStep:
    return UnknownStep(
        f"position {place} of execution {source.id} lies in a branch, and the other branches have no order to it. "
        f"Begin at a step of the body: the parallel scope around it has position {_root(place)}.",
        execution_id=source.id,
    )


def _unknown(source: Execution, found: Timeline, problem: str, name: str | None = None) -> UnknownStep:
    items = [item for item in _items(found) if name is None or item.name == name]
    lines = [f"\n  {item.position}  {_described(item)}" for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"\n  and {len(items) - _LISTED} more")
    listed = "".join(lines) or " none"
    return UnknownStep(f"{problem}. The steps of execution {source.id}:{listed}", execution_id=source.id)


def _items(found: Timeline) -> list[Step | Waited]:
    """Steps and waits, in the order of the body."""
    return sorted([*found.steps, *found.waits], key=lambda item: timeline.place_key(item.position))


def _described(item: Step | Waited) -> str:
    return item.name if isinstance(item, timeline.Step) else f"{item.name} ({item.kind})"


def _root(place: Any) -> int:
    """The position in the body at which a step, or the scopes around it, stand."""
    return int(re.match(r"\d+", place)[0])  # type: ignore[index]


def _root_of(row: Journaled) -> int:
    """The same of an entry; what belongs to no position comes last."""
    if row.scope.startswith("#"):
        return sys.maxsize
    return _root(row.scope) if row.scope else row.position
