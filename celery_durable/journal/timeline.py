"""The journal of one generation for people: steps in the order of the body, each with its outcome."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from celery_durable.codec import Codec
from celery_durable.errors import DurableError
from celery_durable.store.records import (
    DECISIONS,
    META,
    UNDO,
    EntryKind,
    Journaled,
    State,
    StoredPayload,
    place_of,
    runs_again,
)

from .entries import Past, fold, is_wait
from .packing import unpacked

__all__ = ["Event", "RecordedScope", "RecordedStep", "RecordedWait", "StepOutcome", "Timeline", "place_key", "read"]


class StepOutcome(str, enum.Enum):
    """The outcome of a step."""

    #: It ended, its value is journaled, it never runs again.
    DONE = "done"
    #: It raised; either the body handled that, or the execution ended there.
    FAILED = "failed"
    #: Nobody knew whether its effect had happened, and ``SKIP`` assumed it.
    SKIPPED = "skipped"
    #: It was done, but its result could not be stored; it never runs again.
    LOST = "lost"
    #: Its effect may have happened or not: its policy, or an operator, decides.
    IN_DOUBT = "in doubt"
    #: An earlier generation ran it under other arguments; an operator decides.
    CONFLICT = "conflict"
    #: Its operation is under way.
    TRYING = "trying"
    #: Its operation was under way when its process died. It is in the journal because it can be undone; it runs again.
    BEGUN = "begun"
    #: A try failed in a known way, and it may be tried again.
    RETRYING = "retrying"
    #: An operator decided to run it.
    TO_RUN = "to run"
    #: Its entries contradict each other, or come from a newer version.
    UNREADABLE = "unreadable"

    def __str__(self) -> str:
        return self.value


_OUTCOMES: Final = {
    Past.DONE: StepOutcome.DONE,
    Past.ERROR: StepOutcome.FAILED,
    Past.SKIPPED: StepOutcome.SKIPPED,
    Past.LOST: StepOutcome.LOST,
    Past.UNDECIDED: StepOutcome.IN_DOUBT,
    Past.OPEN: StepOutcome.IN_DOUBT,
    Past.TRY: StepOutcome.RETRYING,
}
_KINDS: Final = {
    EntryKind.INTENT: "intent",
    EntryKind.ATTEMPT: "failed try",
    EntryKind.AUDIT: "audit",
    EntryKind.RESULT: "result",
    EntryKind.ERROR: "error",
    EntryKind.SKIPPED: "skipped",
    EntryKind.LOST: "result lost",
    EntryKind.RUN_AGAIN: "to be run",
}
#: The last entries of steps that a replay does not run again.
_FINISHED: Final = frozenset({"result", "error", "skipped", "result lost"})
_WAITS: Final = {
    EntryKind.TIMER: "timer",
    EntryKind.PROMISE: "promise",
    EntryKind.WAIT: "wait",
    EntryKind.CALL: "call",
}
#: The message of an exception, after its class.
_RAISED: Final = re.compile(r"(?<=it raised )(\w+): .*", re.DOTALL)
#: In these states a step whose try failed may still be tried again; never in an earlier generation.
_UNFINISHED: Final = (State.PENDING, State.SUSPENDED, State.RUNNING, State.AMBIGUOUS, State.QUARANTINED)


#: Beyond every position.
_LAST: Final = 1 << 62


@dataclass
class Event:
    """One entry of a step."""

    kind: str
    attempt: int
    at: int
    duration_us: int | None
    #: The text of an audit, without values.
    text: str = ""
    #: Further details of an audit; may show arguments and messages of errors.
    details: dict[str, Any] = field(default_factory=dict)
    payload: StoredPayload | None = None


@dataclass
class RecordedStep:
    """One step."""

    position: str
    name: str
    effect: str | None
    outcome: StepOutcome
    attempts: int
    duration_us: int | None
    key: bytes | None
    at: int
    events: list[Event]
    #: Why it is in doubt, without values.
    doubt: str | None = None
    #: The value, or the error.
    payload: StoredPayload | None = None

    @property
    def rival(self) -> tuple[int, str] | None:
        """Generation and idempotency key of the step with which this one conflicts."""
        if self.outcome is not StepOutcome.CONFLICT or "key" not in self.events[-1].details:
            return None
        return self.events[-1].details["generation"], self.events[-1].details["key"]

    @property
    def finished(self) -> bool:
        """True if a replay does not run it again."""
        return self.events[-1].kind in _FINISHED

    @property
    def plain(self) -> bool:
        """True when there is nothing to show except the outcome."""
        return [e.kind for e in self.events] in (["result"], ["intent", "result"])


@dataclass
class RecordedScope:
    """A parallel scope."""

    position: str
    branches: int = 0
    ended: bool = False


@dataclass
class RecordedWait:
    """A place at which the body waits, or waited, or made something to wait for."""

    position: str
    name: str
    #: ``sleep``, ``timer``, ``promise``, ``wait`` or ``call``.
    kind: str
    #: ``open``, ``done`` or ``failed``; ``made`` if the body waits for it elsewhere.
    outcome: str
    #: When it began, in ms since the epoch.
    at: int
    #: When it ends by time, if a time was given; likewise.
    until: int | None = None
    #: Its result.
    payload: StoredPayload | None = None


@dataclass
class Timeline:
    """One generation of a journal."""

    steps: list[RecordedStep]
    scopes: list[RecordedScope]
    waits: list[RecordedWait]
    #: Changes of the body that this execution takes (``ctx.patched``).
    patches: list[str]
    #: Decisions of operators about promises, with the promises' names; the earliest first.
    decisions: list[tuple[str, Event]] = field(default_factory=list)


def read(rows: Sequence[Journaled], codec: Codec, state: State | None) -> Timeline:
    """Fold the entries of one generation.

    :param state: of the execution; None for a generation that is over.
    """
    steps: list[RecordedStep] = []
    waits: list[RecordedWait] = []
    scopes: dict[str, RecordedScope] = {}
    patches = []
    decisions = []
    for group in _groups(rows):
        first = group[0]
        if first.scope == META:
            if first.kind == EntryKind.PATCH:
                patches.append(first.name)
        elif first.scope == UNDO:
            steps.append(_step(group, codec, state))
        elif first.scope == DECISIONS:
            decisions.append((first.name, _event(first, codec)))
        elif first.scope.startswith("#"):
            continue
        elif first.kind in (EntryKind.SCOPE, EntryKind.SCOPE_END):
            place = _place(first)
            scopes.setdefault(place, RecordedScope(place)).ended = group[-1].kind == EntryKind.SCOPE_END
        elif is_wait(group):
            waits.append(_wait(group, codec))
        else:
            steps.append(_step(group, codec, state))
    for path in {row.scope for row in rows}:
        parent, _, branch = path.rpartition(".")
        if parent in scopes:
            scopes[parent].branches = max(scopes[parent].branches, int(branch) + 1)
    steps.sort(key=lambda s: place_key(s.position))
    waits.sort(key=lambda w: place_key(w.position))
    ordered = sorted(scopes.values(), key=lambda s: place_key(s.position))
    return Timeline(steps, ordered, waits, patches, decisions)


def place_key(place: str) -> tuple[tuple[int, int], ...]:
    """Sorts positions in the order of the body: 4 before 4.0/0 before 4.1/0 before 5; undos come last."""
    parts = [part.partition(".") for part in place.split("/")]
    return tuple(
        (_LAST if position == UNDO else int(position), int(branch) if branch else -1) for position, _, branch in parts
    )


def _groups(rows: Sequence[Journaled]) -> Iterator[list[Journaled]]:
    """The entries position by position, with packs unpacked."""
    plain = sorted(unpacked(rows), key=lambda r: (r.scope, r.position, r.entry))
    for _, group in groupby(plain, key=lambda r: (r.scope, r.position)):
        yield list(group)


def _wait(rows: list[Journaled], codec: Codec) -> RecordedWait:
    first, last = rows[0], rows[-1]
    wait = RecordedWait(_place(first), first.name, _WAITS[EntryKind(first.kind)], "open", first.at)
    if first.kind == EntryKind.TIMER:
        wait.kind = first.name
        said = _decoded(first, codec, None)
        if isinstance(said, dict):
            due = said["until"] if "until" in said else first.at + int(said.get("delay", 0))
            wait.until = due if type(due) is int else None
    if wait.kind in ("timer", "promise"):
        wait.outcome = "made"
    elif last is not first:
        wait.outcome = "failed" if last.kind == EntryKind.ERROR else "done"
        if last.codec is not None and last.payload is not None:
            wait.payload = StoredPayload(last.codec, last.payload)
    return wait


def _step(rows: list[Journaled], codec: Codec, state: State | None) -> RecordedStep:
    first, last = rows[0], rows[-1]
    events = [_event(row, codec) for row in rows]
    step = RecordedStep(
        position=_place(first),
        name=first.name,
        effect=None,
        outcome=StepOutcome.UNREADABLE,
        attempts=max(row.attempt for row in rows),
        duration_us=next((row.duration_us for row in reversed(rows) if row.duration_us is not None), None),
        key=next((row.key for row in rows if row.key is not None), None),
        at=last.at,
        events=events,
    )
    try:
        recorded = fold(rows, payloads=False)
    except DurableError as error:
        step.doubt = str(error)
        return step
    step.effect = None if recorded.effect is None else recorded.effect.value
    step.outcome = _outcome(recorded.past, events, state, again=runs_again(last))
    step.payload = recorded.payload
    if step.outcome in (StepOutcome.IN_DOUBT, StepOutcome.CONFLICT):
        step.doubt = _why(events)
    return step


def _outcome(past: Past, events: list[Event], state: State | None, *, again: bool) -> StepOutcome:
    last = events[-1]
    if past is Past.UNDECIDED and "then" in last.details:
        return StepOutcome.CONFLICT
    if past is Past.OPEN and state is State.RUNNING:
        return StepOutcome.TRYING
    if again:
        return StepOutcome.BEGUN
    if last.kind == "to be run":
        return StepOutcome.TO_RUN
    if past is Past.TRY and state not in _UNFINISHED:
        return StepOutcome.FAILED
    return _OUTCOMES[past]


def _why(events: list[Event]) -> str:
    """Why a step is in doubt, from the last audit that tells it."""
    for event in reversed(events):
        if "then" in event.details:
            return f"generation {event.details.get('generation', '?')} ran it already, under other arguments"
        raised = event.details.get("error")
        if raised and raised != "AmbiguousEffect":
            return f"its operation raised {raised}, which may hide a success"
        if event.kind == "audit" and not raised and event.details.get("reason") != "still undecided":
            return str(event.details.get("reason") or "unknown")
    return "an intent without a result"


def _event(row: Journaled, codec: Codec) -> Event:
    kind = _KINDS.get(EntryKind(row.kind), "?") if row.kind in set(EntryKind) else f"kind {row.kind}"
    event = Event(kind, row.attempt, row.at, row.duration_us)
    if kind != "audit":
        if row.codec is not None and row.payload is not None:
            event.payload = StoredPayload(row.codec, row.payload)
        return event
    said = _decoded(row, codec, {})
    event.details = said if isinstance(said, dict) else {"reason": str(said)}
    event.text = _audit_text(event.details)
    return event


def _audit_text(said: dict[str, Any]) -> str:
    """An audit in one line, without arguments and without messages of exceptions."""
    decision = str(said.get("decision", ""))
    if "then" in said:
        return f"conflict: generation {said.get('generation', '?')} ran it under other arguments; left to an operator"
    if said.get("reason") == "operator":
        note = f": {said['note']}" if said.get("note") else ""
        return f"{said.get('by', 'an operator')} decided: {decision}{note}"
    if decision == "parked":
        return f"left to an operator; raised: {said['error']}" if said.get("error") else "left to an operator"
    return f"{_without_message(str(said.get('reason', 'unknown')))}; policy: {_without_message(decision)}"


def _without_message(decision: str) -> str:
    return _RAISED.sub(lambda match: match[1], decision)


def _decoded(row: Journaled, codec: Codec, missing: Any) -> Any:
    if row.codec is None or row.payload is None:
        return missing
    try:
        return codec.decode_either(row.codec, row.payload, "a journal entry")
    except DurableError as error:
        return str(error)


def _place(row: Journaled) -> str:
    return place_of(row.scope, row.position)
