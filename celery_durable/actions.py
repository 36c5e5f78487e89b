"""The words between the rules of a step and whoever carries them out.

The rules (:mod:`.protocol`) yield actions and are sent answers; a driver (:mod:`.drive`) does the waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .codec import preview
from .current import StepHandle
from .effects import Guard
from .errors import GuardConflict
from .identity import idempotency_key
from .replay import Recorded
from .step import StepDescriptor
from .store.records import Entry, EntryKind, GuardHolder, Journaled, StoredPayload

__all__ = [
    "Action",
    "Ask",
    "Call",
    "Claim",
    "Flush",
    "Outcome",
    "Pause",
    "StepCall",
    "Surroundings",
    "Transact",
    "Wait",
]


class Flush(NamedTuple):
    """Commit everything appended so far, under the lease."""

    #: Makes the entry that is written if it does not come to the operation that was announced: it is known not to have
    #: started.
    unstarted: Callable[[], Entry] | None = None


class Call(NamedTuple):
    """Run the operation. Answer: ``(value, None)`` or ``(None, exception)``."""

    handle: StepHandle
    #: The lease must be known to be held right before it starts.
    guarded: bool


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
    unstarted: Callable[[], Entry]


class Transact(NamedTuple):
    """Run the operation in a transaction, which also holds its journal entry. Answer: ``(value, None)``, which is then
    journaled, or ``(None, exception)`` where all of it was rolled back.
    """

    handle: StepHandle
    #: Makes the entry of a result, and the value as the body gets it. Takes how long the operation took, in
    #: microseconds. Its errors are the step's.
    conclude: Callable[[Any, int], tuple[Entry, Any]]


class Wait(NamedTuple):
    """Another execution runs the operation of this global key right now: come back later."""

    holder: GuardHolder


Action = Flush | Call | Ask | Pause | Claim | Transact | Wait


class Outcome(NamedTuple):
    """What the body gets."""

    value: Any
    error: Exception | None
    replayed: bool
    skipped: bool
    attempt: int


class Surroundings(Protocol):
    """What the rules need from the execution around the step; nothing here waits."""

    execution_id: str

    def append(self, entry: Entry, *, finishes: bool = False) -> None: ...
    def encode(self, value: Any, where: str) -> StoredPayload: ...
    def encode_tree(self, tree: dict[str, Any]) -> StoredPayload: ...
    def roundtrip(self, value: Any, where: str) -> tuple[StoredPayload, Any]: ...
    def roundtrip_error(self, error: BaseException, where: str) -> tuple[StoredPayload, Exception]: ...
    def decode(self, payload: StoredPayload | None, where: str) -> Any: ...
    def decode_error(self, payload: StoredPayload | None, where: str) -> Exception: ...
    def note_error(self, call: StepCall, entry: Entry, doubt: str | None = None) -> None: ...
    def earlier(self, call: StepCall) -> tuple[int, Recorded, Journaled] | None: ...
    def conflicting(self, call: StepCall) -> tuple[int, Recorded, Journaled] | None: ...
    def must_park(self, error: GuardConflict) -> None: ...


@dataclass(slots=True)
class StepCall:
    """One request of the body for a step."""

    descriptor: StepDescriptor
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    execution_id: str
    #: Path of the scope, what its keys are told apart by, and the position in it.
    scope: str
    lane: str
    position: int
    fingerprint: bytes
    #: How many steps of the same fingerprint came before it in its lane.
    occurrence: int
    #: The key by which the application names the operation, if it does.
    named: bytes | None
    #: Number of the next entry at this position.
    next_entry: int = 0
    #: Whom to take the global key over from.
    take: GuardHolder | None = None
    #: The idempotency key of the journal, if it has one, or the one made here.
    known_key: bytes | None = None

    @property
    def guard(self) -> Guard | None:
        return self.descriptor.guard

    @property
    def place(self) -> str:
        """As :func:`~.store.records.place_of`, without the price of a call: each step has one."""
        return f"{self.scope}/{self.position}" if self.scope else str(self.position)

    @property
    def where(self) -> str:
        """How errors call this step."""
        return f"step {self.descriptor.name!r} (position {self.place})"

    @property
    def key(self) -> bytes:
        """The idempotency key. Steps that are replayed from the journal never need one, so it is made on demand."""
        if self.known_key is None:
            self.known_key = self.named or idempotency_key(
                self.execution_id, self.descriptor.name, self.fingerprint, self.occurrence, self.lane
            )
        return self.known_key

    def preview(self) -> str:
        """The arguments as a short text for people."""
        shown = [preview(a, 60) for a in self.args] + [f"{k}={preview(v, 60)}" for k, v in self.kwargs.items()]
        text = f"({', '.join(shown)})"
        return text if len(text) <= 300 else f"{text[:297]}..."

    def handle(self, attempt: int) -> StepHandle:
        return StepHandle(self, attempt)

    def entry(
        self,
        kind: EntryKind,
        *,
        attempt: int = 1,
        payload: StoredPayload | None = None,
        duration_us: int | None = None,
    ) -> Entry:
        """The next entry at this step's position."""
        number = self.next_entry
        self.next_entry = number + 1
        descriptor = self.descriptor
        return Entry(
            self.scope,
            self.position,
            number,
            kind,
            descriptor._code,
            descriptor.name,
            self.fingerprint,
            self.key if descriptor._lasting else None,
            attempt,
            duration_us,
            payload,
        )
