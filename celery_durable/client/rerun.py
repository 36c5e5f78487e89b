"""A new execution of a call that was made before, which shares the beginning of its journal.

Everything before the chosen step is copied and does not run again, guarded results included. The step itself and
everything after it are new: their idempotency keys are derived from the new execution's id. Keys that the application
chose itself (``key=``) stay the same, and an operation that was done under one does not run again.

Children that ended before the chosen step are shared with their outcomes. The copy records them under the ids that they
would have as children of the new execution: so it needs nothing of the old one, and a body that diverges finds them.

Promises that were made before it are shared as they are, settled or not: whoever has their token has no other one. The
new execution has its own row for each, which is settled together with the old one.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from celery_durable.codec import Codec
from celery_durable.codec.refusal import understood
from celery_durable.common.faults import reached
from celery_durable.errors import UnknownStep, WrongState
from celery_durable.identity import call_hash, promise_id
from celery_durable.journal import timeline
from celery_durable.journal.packing import unpack
from celery_durable.journal.timeline import RecordedStep, RecordedWait, Timeline
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.durable_id import check_id
from celery_durable.messaging.sending import publish_stored
from celery_durable.messaging.start_once import record
from celery_durable.replay.shared_prefix import SharedPrefix, mark, read_mark
from celery_durable.runtime import Runtime
from celery_durable.store.copying import BRINGING, Prefix, copy_prefix
from celery_durable.store.records import (
    FINAL_STATES,
    META,
    PARKED_STATES,
    UNDO,
    EntryKind,
    Execution,
    Journaled,
    PayloadKind,
    Published,
)
from celery_durable.waits.tokens import Tokens

from .new_call import as_new_call

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy.engine import Connection


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

    :param from_step: position or name of the first step to run again; None: all of them.
    :param durable_id: the new execution's id; asked for twice, it is started once.
    :param callbacks: False: without links and without the rest of its chain.
    :returns: the id of the new execution.
    :raises UnknownExecution, UnknownStep, WrongState, DurableIdConflict, ConfigurationError, PayloadError,
        JournalUnavailable: see :meth:`~.handle.ExecutionHandle.rerun`.
    """
    runtime = Runtime.of(app)
    operations = runtime.operations
    new_id = str(uuid.uuid4()) if durable_id is None else check_id(durable_id)
    source = operations.get(execution_id)
    _check_state(source)
    stored = operations.payload(source.pk, PayloadKind.ENVELOPE)
    if stored is None:
        raise WrongState(f"execution {execution_id} ran eagerly, so its message was not stored. Call its task again.")
    rows = operations.entries(source.pk, source.generation, values=False)
    promised = runtime.journal.of_kind(EntryKind.PROMISE, source.pk, source.generation, source.generation)
    prefix = _prefix(source, rows, promised, runtime, from_step, new_id)
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
    [pk] = record(app, runtime, [published], now=now, then=then)
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
            f"execution {source.id} is {source.state}; only one that has ended, or is parked, can be rerun: otherwise "
            "its remaining work would be done twice. Wait for its end, or cancel it."
        )


# -- where the new one begins -------------------------------------------------------------------------------------


def _prefix(
    source: Execution,
    rows: Sequence[Journaled],
    promised: Sequence[Journaled],
    runtime: Runtime,
    from_step: int | str | None,
    new_id: str,
) -> Prefix:
    """
    :param rows: the journal, without values and tokens.
    :param promised: its entries that have tokens.
    """
    codec = runtime.codec
    found = timeline.read(rows, codec, source.state)
    found.steps = [step for step in found.steps if not step.position.startswith(UNDO)]
    position = 0 if from_step is None else _position(source, found, from_step)
    if position:
        _check_undoing(source, rows, position, codec)
    shared = [step for step in found.steps if _root(step.position) < position]
    for step in shared:
        if not step.finished:
            raise _unfinished(source, "step", step, f" (it is {step.outcome})", _DOUBT)
    for wait in found.waits:
        if _root(wait.position) < position and wait.outcome == "open":
            raise _unfinished(source, wait.kind, wait, "", _CHILDREN if wait.kind == "call" else "")
    cut: int | None = None
    bringing = [row for row in [*rows, *promised] if row.kind in BRINGING and _root_of(row) < position]
    instead, ids = _adopted(source, bringing, runtime, new_id)
    for row in rows:
        if row.kind == EntryKind.CHECKPOINT and not row.scope and row.position < position:
            steps = unpack(row)
            if steps[-1].position >= position:
                cut = row.position
                instead += [step for step in steps if step.position < position]
    scopes = {row.scope for row in rows if row.scope}
    taken = sorted(scope for scope in scopes if scope == META or (scope[0] != "#" and _root(scope) < position))
    if position:
        instead.append(mark(SharedPrefix(source.id, position, len(shared)), codec, source.updated_at))
    return Prefix(source.generation, position, taken, len(shared), cut, instead, ids)


def _check_undoing(source: Execution, rows: Sequence[Journaled], position: int, codec: Codec) -> None:
    """Only what nobody has undone, and nobody will, can be shared."""
    said = {row.kind: row for row in rows if row.scope == META and not row.position}
    older = said.get(EntryKind.SHARED)
    if older is not None and position <= read_mark(older, codec).position:
        return  # it is not the source's to undo either
    if EntryKind.UNDOING in said:
        raise WrongState(
            f"what execution {source.id} did was undone, so none of its steps can be shared. Rerun all of it: leave "
            "from_step out."
        )
    if EntryKind.SAGA in said and source.state in PARKED_STATES:
        raise WrongState(
            f"execution {source.id} is {source.state}. What it did is undone if it is cancelled, or continues and "
            "fails, so nothing can be shared until it has ended. Settle it, or rerun all of it: leave from_step out."
        )


def _adopted(
    source: Execution, rows: Sequence[Journaled], runtime: Runtime, new_id: str
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
        kept = runtime.codec.decode(row.codec, row.payload, where)
        with understood(where):
            _adopt(kept, row.kind == EntryKind.CALL, source, runtime.tokens, new_id, ids)
        stored_codec, payload = runtime.codec.encode(kept, where)
        instead.append(row._replace(codec=stored_codec, payload=payload))
    return instead, ids


def _adopt(kept: Any, called: bool, source: Execution, tokens: Tokens, new_id: str, ids: dict[str, str]) -> None:
    """Give what is kept of child tasks, or of a promise, the ids that it has in the new execution."""
    if called:
        for child in kept:
            ids[child["id"]] = tokens.child_id(source.namespace, new_id, *child["of"])
            child["id"] = ids[child["id"]]
    else:
        # Journals from before revision 0003 do not say of what it was made.
        new_row = promise_id(source.namespace, new_id, *kept["of"]) if "of" in kept else uuid.uuid4().hex
        ids[kept.get("row", kept["id"])] = new_row
        kept["row"] = new_row


def _unfinished(source: Execution, what: str, item: RecordedStep | RecordedWait, state: str, advice: str) -> WrongState:
    return WrongState(
        f"{what} {item.name!r} (position {item.position}) of execution {source.id} has not ended{state}, so it cannot "
        f"be shared: choose from_step={_root(item.position)} or less, to begin before it.{advice}"
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
        what = "steps" if all(isinstance(item, timeline.RecordedStep) for item in named) else "places"
        raise _unknown(source, found, f"{len(places)} {what} are named {name!r}: say which by its position", name)
    if "/" in places[0]:
        raise _in_branch(source, places[0])
    return int(places[0])


def _in_branch(source: Execution, place: str) -> UnknownStep:
    return UnknownStep(
        f"position {place} of execution {source.id} is in a branch, which has no order relative to the other branches. "
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


def _items(found: Timeline) -> list[RecordedStep | RecordedWait]:
    """Steps and waits, in the order of the body."""
    return sorted([*found.steps, *found.waits], key=lambda item: timeline.place_key(item.position))


def _described(item: RecordedStep | RecordedWait) -> str:
    return item.name if isinstance(item, timeline.RecordedStep) else f"{item.name} ({item.kind})"


def _root(place: Any) -> int:
    """The position in the body at which a step, or the scopes around it, stand."""
    return int(re.match(r"\d+", place)[0])  # type: ignore[index]


def _root_of(row: Journaled) -> int:
    """The same of an entry; what belongs to no position comes last."""
    if row.scope.startswith("#"):
        return sys.maxsize
    return _root(row.scope) if row.scope else row.position
