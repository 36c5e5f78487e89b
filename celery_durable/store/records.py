"""What goes into the store and comes out of it: plain typed values, no SQL."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from .children import Offspring

__all__ = [
    "FINAL_STATES",
    "META",
    "PARKED_STATES",
    "TOLD",
    "Awaited",
    "Awaiting",
    "Batch",
    "Birth",
    "Closed",
    "Doubt",
    "EffectCode",
    "Entry",
    "EntryKind",
    "Execution",
    "Fence",
    "GuardHolder",
    "Journaled",
    "NewPromise",
    "OpenRequest",
    "Opened",
    "PayloadKind",
    "PromiseState",
    "Refusal",
    "Refused",
    "State",
    "StoredPayload",
    "place_of",
]


def place_of(scope: str, position: int) -> str:
    """A position as people read it."""
    return f"{scope}/{position}" if scope else str(position)


class State(str, enum.Enum):
    """State of an execution."""

    #: Nobody runs it; it may start at once.
    PENDING = "pending"
    #: Somebody holds, or held, its lease.
    RUNNING = "running"
    #: It waits for its time, and holds nothing meanwhile.
    SUSPENDED = "suspended"
    #: Parked: a guarded effect is in doubt, an operator decides.
    AMBIGUOUS = "ambiguous"
    #: Parked: it killed its workers too often, or its body and journal disagree.
    QUARANTINED = "quarantined"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


FINAL_STATES: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
PARKED_STATES: Final = frozenset({State.AMBIGUOUS, State.QUARANTINED})


class EntryKind(enum.IntEnum):
    """What a journal entry says. The numbers are stored: never reuse one."""

    #: A guarded operation is about to run.
    INTENT = 1
    #: A try failed in a way that is known; the step may be tried again.
    ATTEMPT = 2
    #: Lost knowledge was noticed; says which policy decided what.
    AUDIT = 3
    #: The step's value.
    RESULT = 4
    #: The step raised, and the body handled it.
    ERROR = 5
    #: SKIP assumed that the effect happened.
    SKIPPED = 6
    #: The operation was done, its result could not be stored.
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
    #: The body waits here for what others bring. What it came to is a RESULT or an ERROR.
    WAIT = 16
    #: The execution has something to undo if it fails or is cancelled.
    SAGA = 30
    #: It has failed, or was cancelled: what it did is undone. The payload is the error; none for a cancellation.
    UNDOING = 31
    #: Child tasks were started here; the payload names them. What they came to is a RESULT or an ERROR.
    CALL = 40


#: The scope of what is journaled about the execution itself: at position 0 what there is to undo, then its patches.
META: Final = "#patch"
#: The scope of what operators have decided of promises.
DECISIONS: Final = "#operator"
#: Name of an ``UNDOING`` entry of which Celery was told how it ends.
TOLD: Final = "told"


class EffectCode(enum.IntEnum):
    """How an effect is stored. Never reuse a number."""

    IDEMPOTENT = 1
    AT_LEAST_ONCE = 2
    EXACTLY_ONCE_GUARDED = 3
    TRANSACTIONAL = 4


class PayloadKind(enum.IntEnum):
    """What a payload row holds. Never reuse a number."""

    #: The Celery message, to be sent again.
    ENVELOPE = 1
    #: The value or error with which the execution ended.
    OUTCOME = 2
    #: Why it was parked, cancelled or failed from outside; text.
    REASON = 3


class Awaited(NamedTuple):
    """Promises that an execution waits for together."""

    ids: tuple[str, ...]
    #: How many of them must be settled before it goes on.
    needed: int


@dataclass(frozen=True)
class Awaiting:
    """What ends a suspension besides the passing of time."""

    groups: tuple[Awaited, ...]
    #: Milliseconds from now until its earliest timer; None where it has none.
    timer_ms: int | None


class PromiseState(enum.IntEnum):
    """State of a promise. The numbers are stored: never reuse one."""

    PENDING = 0
    RESOLVED = 1
    REJECTED = 2
    EXPIRED = 3
    #: What was to keep it was cancelled; the payload is a text that says why.
    CANCELLED = 4


class StoredPayload(NamedTuple):
    """Encoded bytes and the tag of the codec that made them."""

    codec: int
    data: bytes


class Fence(NamedTuple):
    """The right to write to an execution's journal, as it was granted."""

    pk: int
    epoch: int


class NewPromise(NamedTuple):
    """A promise on its way into the store, together with the journal entry that says so."""

    id: str
    name: str
    #: BLAKE3 of the token; None where only the library itself may settle it.
    token_hash: bytes | None = None
    #: From its making to its expiry; None for never.
    timeout_ms: int | None = None
    #: From one sign of life to the next at most; None where none is expected.
    heartbeat_ms: int | None = None
    #: The id by which it is known outside, where that is another one's, which a rerun shares.
    known_as: str | None = None


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
    #: Made in the same transaction.
    promise: NewPromise | None = None
    #: Child tasks that are recorded in the same transaction.
    offspring: Offspring | None = None


class Journaled(NamedTuple):
    """One journal entry as the store gives it back."""

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


class Batch(NamedTuple):
    """Entries of one execution that are committed together."""

    fence: Fence
    generation: int
    entries: tuple[Entry, ...]
    #: How many of the entries finish a step; keeps the row's ``steps``.
    steps: int = 0
    #: True when an earlier commit of it was not acknowledged: perhaps it is in.
    again: bool = False
    #: Where the execution's row is not written yet: it goes in with this batch.
    birth: Birth | None = None
    #: How many entries were appended, of which some may share a row.
    appended: int = 0


@dataclass(frozen=True)
class OpenRequest:
    """A message asks for the right to run."""

    id: str
    task: str
    #: Unique for this opening; the store recognises its own commit by it.
    owner: str
    #: Celery's retry number of the message.
    retries: int
    #: Makes the message as it is stored, where the execution turns out to be new and recoverable.
    envelope: Callable[[], StoredPayload]
    #: The row's key, where the message carries it (it was written at publish).
    pk: int | None = None
    #: False for eager runs: recovery never looks at them.
    recoverable: bool = True
    #: It comes back from an outage, in which no owner could renew its lease: it takes none over. Recovery does, later.
    postponed: bool = False
    #: How often ``Task.replace`` has handed the id on.
    replacements: int = 0
    #: The broker vouches for this being the message's first delivery, and would deliver it again: the row may wait for
    #: the first commit.
    fresh: bool = False


class Birth(NamedTuple):
    """An execution whose row goes in with its first commit."""

    namespace: str
    request: OpenRequest


@dataclass(frozen=True)
class Opened:
    """The lease was granted."""

    fence: Fence
    owner: str
    generation: int
    base_generation: int
    attempts: int
    retries: int
    #: True where the journal may hold entries.
    resumed: bool
    #: True where a previous owner died.
    taken_over: bool = False
    steps: int = 0
    #: Where there is no row yet.
    birth: Birth | None = None
    #: Its cancellation was asked for: what it did is to be undone.
    cancelling: bool = False


class Refusal(enum.Enum):
    """Why a message may not run."""

    #: Another owner runs it now.
    LIVE = "live"
    #: A message of an earlier attempt, or one that came before its time.
    STALE = "stale"
    #: It waits for an operator.
    PARKED = "parked"
    #: This message would be one take-over too many; it has just been parked.
    QUARANTINED = "quarantined"
    #: It ended, and Celery was told.
    DONE = "done"
    #: It ended so long ago that only its row is left.
    PRUNED = "pruned"


@dataclass(frozen=True)
class Refused:
    """The message is to be dropped."""

    why: Refusal
    state: State
    #: Why it was quarantined just now.
    reason: str = ""


@dataclass(frozen=True)
class Closed:
    """It ended, but nobody knows whether Celery was told: hand the stored outcome on once more."""

    pk: int
    state: State
    outcome: StoredPayload | None


@dataclass(frozen=True)
class Execution:
    """A row of the executions table."""

    pk: int
    namespace: str
    id: str
    task: str
    state: State
    epoch: int
    owner: str | None
    #: ms since the epoch, UTC.
    lease_until: int
    wake_at: int | None
    generation: int
    base_generation: int
    attempts: int
    retries: int
    replacements: int
    sends: int
    steps: int
    created_at: int
    updated_at: int
    #: When journal and payloads were removed.
    pruned_at: int | None = None


class Doubt(NamedTuple):
    """A guarded step of which nobody knows whether its effect happened, or that conflicts with an earlier one."""

    scope: str
    position: int
    name: str
    key: bytes | None
    #: True where its policy has left it to an operator; False where it has not been asked yet.
    parked: bool

    @property
    def place(self) -> str:
        """The position as people read it."""
        return place_of(self.scope, self.position)


@dataclass(frozen=True)
class GuardHolder:
    """Who holds a global idempotency key, and what is known of its operation."""

    pk: int
    generation: int
    fingerprint: bytes
    execution: Execution | None
    #: True while the holder's lease has not run out.
    live: bool
    entries: list[Journaled] = field(default_factory=list)
