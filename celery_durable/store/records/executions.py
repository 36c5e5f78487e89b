"""Executions: their states, the right to run one, and why it is refused."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from .values import Fence, Stored, StoredPayload

__all__ = [
    "FINAL_STATES",
    "PARKED_STATES",
    "Birth",
    "Closed",
    "Execution",
    "OpenRequest",
    "Opened",
    "Refusal",
    "Refused",
    "State",
]


class State(Stored, str, enum.Enum):
    """State of an execution."""

    #: Nobody runs it; it may start at once.
    PENDING = "pending"
    #: Somebody holds, or held, its lease.
    RUNNING = "running"
    #: It waits to continue, and holds nothing meanwhile.
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


@dataclass(frozen=True)
class OpenRequest:
    """A message's request for the right to run."""

    id: str
    task: str
    #: Unique for this request; the store recognises its own commit by it.
    owner: str
    #: Celery's retry number of the message.
    retries: int
    #: Makes the message as it is stored, if the execution turns out to be new and recoverable.
    envelope: Callable[[], StoredPayload]
    #: The row's key, if the message carries it (the row was written at publish).
    pk: int | None = None
    #: False for eager runs: recovery never looks at them.
    recoverable: bool = True
    #: It was postponed by an outage, in which no owner could renew its lease: so it takes over no lease; recovery does.
    postponed: bool = False
    #: How often ``Task.replace`` has passed the id on.
    replacements: int = 0
    #: By the broker's word this is the message's first delivery, and it would be delivered again: the row may be
    #: written with the first commit.
    fresh: bool = False


class Birth(NamedTuple):
    """An execution whose row is written with its first commit."""

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
    #: True if the journal may hold entries.
    resumed: bool
    #: True if a previous owner died.
    taken_over: bool = False
    steps: int = 0
    #: If there is no row yet.
    birth: Birth | None = None
    #: Its cancellation was requested: what it did is to be undone.
    cancelling: bool = False


class Refusal(enum.Enum):
    """Why a message may not run."""

    #: Another owner runs it now.
    LIVE = "live"
    #: A message of an earlier attempt, or one that came too early.
    STALE = "stale"
    #: It waits for an operator.
    PARKED = "parked"
    #: This message would be one take-over too many; it has just been parked.
    QUARANTINED = "quarantined"
    #: It ended, and its outcome was passed on to Celery.
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
    """It ended, but its outcome may not have been passed on to Celery: pass the stored outcome on once more."""

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
