"""One request of a body for a step, and its operation while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from celery_durable.codec import preview
from celery_durable.effects import Guard
from celery_durable.errors import StepLimitExceeded
from celery_durable.identity import idempotency_key, short
from celery_durable.store.records import MOST_ENTRIES, Entry, EntryKind, GuardHolder, StoredPayload

from .descriptor import StepDescriptor

__all__ = ["StepCall", "StepHandle"]


class StepHandle:
    """A running operation, as :func:`current_step` shows it."""

    __slots__ = ("_call", "attempt")

    def __init__(self, call: StepCall, attempt: int) -> None:
        self._call = call
        #: 1 for the first try.
        self.attempt: Final = attempt

    @property
    def execution_id(self) -> str:
        """The Celery task id, or the caller's ``durable_id``."""
        return self._call.execution_id

    @property
    def step_id(self) -> str:
        """The step's position in the body, such as ``"3"`` or ``"4.0/1"``."""
        return self._call.place

    @property
    def name(self) -> str:
        """The step's name in the journal."""
        return self._call.descriptor.name

    @property
    def idempotency_key(self) -> bytes:
        """32 bytes for the remote side to deduplicate on: the same for every try of this step."""
        return self._call.key

    def __repr__(self) -> str:
        return f"<step {self.name!r} (position {self.step_id}) of {self.execution_id}, try {self.attempt}>"


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
    #: Of the application.
    namespace: str = ""
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
                self.namespace, self.execution_id, self.descriptor.name, self.fingerprint, self.occurrence, self.lane
            )
        return self.known_key

    def preview(self, shown: bool = True) -> str:
        """The arguments as a short text for people.

        :param shown: False: nothing of them but their hash.
        """
        if not shown:
            return f"arguments {short(self.fingerprint)}"
        parts = [preview(a, 60) for a in self.args] + [f"{k}={preview(v, 60)}" for k, v in self.kwargs.items()]
        text = f"({', '.join(parts)})"
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
        if number >= MOST_ENTRIES:
            raise StepLimitExceeded(
                f"{self.where} of execution {self.execution_id} has {number} entries in the journal, and cannot have "
                "more: it was tried, or was in doubt, too often."
            )
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
