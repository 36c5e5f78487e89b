"""Entries of the journal, and their positions."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .executions import Birth, Execution
from .messages import Offspring
from .promises import NewPromise
from .values import Fence, StoredPayload

__all__ = [
    "DECISIONS",
    "FOUND_BY_PLACE",
    "META",
    "MOST_ENTRIES",
    "SHARED_AT",
    "TOLD",
    "UNDO",
    "Batch",
    "Doubt",
    "EffectCode",
    "Entry",
    "EntryKind",
    "GuardHolder",
    "Journaled",
    "place_of",
    "runs_again",
]


def place_of(scope: str, position: int) -> str:
    """A position as people read it."""
    return f"{scope}/{position}" if scope else str(position)


class EntryKind(enum.IntEnum):
    """The kind of a journal entry. The numbers are stored: never reuse one."""

    #: The operation of a guarded step, or of one that can be undone, is about to run.
    INTENT = 1
    #: A try failed in a known way; the step may be tried again.
    ATTEMPT = 2
    #: A doubt was found; the payload says which policy decided what.
    AUDIT = 3
    #: The step's value.
    RESULT = 4
    #: The step raised, and the body handled it.
    ERROR = 5
    #: SKIP assumed that the effect happened.
    SKIPPED = 6
    #: The operation was done, but its result could not be stored.
    LOST = 7
    #: A parallel scope was opened here.
    SCOPE = 8
    #: The parallel scope ended; the payload counts the steps of its branches.
    SCOPE_END = 9
    #: ``ctx.patched(id)`` was true here.
    PATCH = 10
    #: The step is to be run: an operator decided so, or its owner knows that its operation did not start.
    RUN_AGAIN = 11
    #: This generation was aborted; the payload says why.
    ABORTED = 12
    #: Several finished steps in one row, a pack.
    CHECKPOINT = 13
    #: A timer was set, or a sleep begun; the payload says for how long, or until when.
    TIMER = 14
    #: A promise was made here; the payload says how its token is found again.
    PROMISE = 15
    #: The body waits here for promises. The outcome is a RESULT or an ERROR.
    WAIT = 16
    #: The execution has something to undo if it fails or is cancelled.
    SAGA = 30
    #: The execution has failed, or was cancelled, and is undone. The payload is the error; none for a cancellation.
    UNDOING = 31
    #: The journal begins with a prefix of another execution's; the payload says how long it is.
    SHARED = 33
    #: Child tasks were started here; the payload names them. Their outcome is a RESULT or an ERROR.
    CALL = 40


class EffectCode(enum.IntEnum):
    """How an effect is stored. Never reuse a number."""

    IDEMPOTENT = 1
    AT_LEAST_ONCE = 2
    EXACTLY_ONCE_GUARDED = 3
    TRANSACTIONAL = 4


#: Effects of steps that may be repeated: they have no key, and are found by their position.
FOUND_BY_PLACE: Final = (EffectCode.IDEMPOTENT, EffectCode.AT_LEAST_ONCE)


#: More entries than a step may have. A pack's row has this number, which is larger than those of its first step.
MOST_ENTRIES: Final = 30_000
#: The scope of entries about the execution itself: at position 0 the saga, and the mark of a shared prefix; then its
#: patches.
META: Final = "#patch"
#: Number of the entry there that marks a shared prefix.
SHARED_AT: Final = 2
#: The scope of operators' decisions about promises.
DECISIONS: Final = "#operator"
#: The scope of undos, in the order in which they are made.
UNDO: Final = "#undo"
#: Name of an ``UNDOING`` entry if Celery was already notified of the end.
TOLD: Final = "told"


class Entry(NamedTuple):
    """One journal entry on its way into the store."""

    scope: str
    position: int
    entry: int
    kind: EntryKind
    effect: EffectCode | None
    name: str
    fingerprint: bytes | None = None
    key: bytes | None = None
    attempt: int = 1
    duration_us: int | None = None
    payload: StoredPayload | None = None
    #: A promise that is made in the same transaction.
    promise: NewPromise | None = None
    #: Child tasks that are recorded in the same transaction.
    offspring: Offspring | None = None


class Journaled(NamedTuple):
    """One journal entry as the store returns it."""

    generation: int
    scope: str
    position: int
    entry: int
    kind: int
    effect: int | None
    name: str
    fingerprint: bytes | None
    key: bytes | None
    epoch: int
    attempt: int
    at: int
    duration_us: int | None
    codec: int | None
    payload: bytes | None


def runs_again(last: Journaled) -> bool:
    """Whether the last entry of a step is an open intent, and the step may be repeated.

    The intent was written because the step can be undone, so nothing is in doubt: running it again gives its result.
    """
    return last.kind == EntryKind.INTENT and last.effect in FOUND_BY_PLACE


class Batch(NamedTuple):
    """Entries of one execution that are committed together."""

    fence: Fence
    generation: int
    entries: tuple[Entry, ...]
    #: How many of the entries finish a step; keeps the row's ``steps``.
    steps: int = 0
    #: True when an earlier commit of it was not acknowledged: it may be committed already.
    again: bool = False
    #: If the execution's row is not written yet: it is inserted with this batch.
    birth: Birth | None = None
    #: The number of its last entry, among all that the execution has appended in this run.
    last: int = 0


class Doubt(NamedTuple):
    """A step whose effect may or may not have happened, or that conflicts with an earlier one."""

    scope: str
    position: int
    name: str
    key: bytes | None
    #: True if its policy has left it to an operator; False if the policy has not decided yet.
    parked: bool

    @property
    def place(self) -> str:
        """The position as people read it."""
        return place_of(self.scope, self.position)


@dataclass(frozen=True)
class GuardHolder:
    """Who holds a global idempotency key, and what is known about its operation."""

    pk: int
    generation: int
    fingerprint: bytes
    execution: Execution | None
    #: True while the holder's lease has not run out.
    live: bool
    entries: list[Journaled] = field(default_factory=list)
