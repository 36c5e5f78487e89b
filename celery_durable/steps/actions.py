"""The messages between the rules of a step and the driver that carries them out.

The rules (:mod:`.protocol`) yield actions and are sent answers; a driver (:mod:`.drive`) does the waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from celery_durable.errors import GuardConflict
from celery_durable.journal.entries import Recorded
from celery_durable.store.records import Entry, GuardHolder, Journaled, StoredPayload

from .call import StepCall, StepHandle

__all__ = [
    "Action",
    "Ask",
    "Claim",
    "Decision",
    "Flush",
    "HeldElsewhere",
    "Operate",
    "Outcome",
    "Pause",
    "Surroundings",
    "Transact",
]


class Flush(NamedTuple):
    """Commit everything appended so far, under the lease."""

    #: Makes the entry that is written if it does not come to the operation that was announced: it is known not to have
    #: started. None: nothing was announced, or it may have happened already, and runs to its end in any case.
    unstarted: Callable[[], Entry] | None = None


class Operate(NamedTuple):
    """Run the operation. Answer: ``(value, None)`` or ``(None, exception)``."""

    handle: StepHandle
    #: The lease must be known to be held right before it starts.
    leased: bool


class Ask(NamedTuple):
    """Run the reconcile callable. Answer as for :class:`Call`."""

    handle: StepHandle
    reconcile: Callable[..., Any]


class Pause(NamedTuple):
    """Wait, in seconds."""

    seconds: float


class Claim(NamedTuple):
    """Commit this intent unless somebody else holds its global key. Answer: None, or the holder."""

    intent: Entry
    #: Take the key over from this holder, who is known not to use it.
    take: GuardHolder | None
    #: As for :class:`Flush`.
    unstarted: Callable[[], Entry] | None


class Transact(NamedTuple):
    """Run the operation in a transaction, which also holds its journal entry. Answer: ``(value, None)``, which is then
    journaled, or ``(None, exception)`` where all of it was rolled back.
    """

    handle: StepHandle
    #: Makes the entry of a result, and the value as the body gets it. Takes how long the operation took, in
    #: microseconds. Its errors are the step's.
    conclude: Callable[[Any, int], tuple[Entry, Any]]


class HeldElsewhere(NamedTuple):
    """Another execution runs the operation of this global key right now: come back later."""

    holder: GuardHolder


Action = Flush | Operate | Ask | Pause | Claim | Transact | HeldElsewhere


class Outcome(NamedTuple):
    """The value that the body gets."""

    value: Any
    error: Exception | None
    replayed: bool
    skipped: bool
    attempt: int


class Decision(NamedTuple):
    """What a policy has made of a guarded step of which nobody knew whether its effect happened. Names, no values."""

    #: ``skip``, ``rerun`` or ``reconcile``.
    policy: str
    #: ``skip`` (taken to have happened), ``rerun`` (called again), or what a reconcile callable said: ``happened``,
    #: ``did_not_happen``, ``unknown``.
    decision: str


class Surroundings(Protocol):
    """What the rules need from the execution around the step; nothing here waits."""

    execution_id: str

    @property
    def is_undone(self) -> bool:
        """What the body did is to be undone: it only tells what that is."""

    @property
    def previews(self) -> bool:
        """Short texts of arguments are kept."""

    def append(self, entry: Entry, *, finishes: bool = False) -> None: ...
    def encode(self, value: Any, where: str) -> StoredPayload: ...
    def encode_tree(self, tree: dict[str, Any]) -> StoredPayload: ...
    def roundtrip(self, value: Any, where: str) -> tuple[StoredPayload, Any]: ...
    def roundtrip_error(self, error: BaseException, where: str) -> tuple[StoredPayload, Exception]: ...
    def decode(self, payload: StoredPayload | None, where: str) -> Any: ...
    def decode_error(self, payload: StoredPayload | None, where: str) -> Exception: ...
    def note_error(self, entry: Entry, doubt: str | None = None) -> None: ...
    def earlier(self, key: bytes, name: str, fingerprint: bytes) -> tuple[int, Recorded, Journaled] | None: ...
    def conflicting(self, name: str, *, named: bool) -> tuple[int, Recorded, Journaled] | None: ...
    def cannot_tell(self, entry: Entry, doubt: str) -> None: ...
    def must_park(self, error: GuardConflict, details: str) -> None: ...
    def decided(self, call: StepCall, decision: Decision) -> None: ...
