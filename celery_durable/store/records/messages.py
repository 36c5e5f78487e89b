"""Celery messages, and the children that they start, on their way into the store."""

from __future__ import annotations

from typing import NamedTuple

from .promises import NewPromise
from .values import StoredPayload

__all__ = ["NewChild", "Offspring", "Published", "Unsent"]


class Published(NamedTuple):
    """A message that is about to be published, to be recorded first (the outbox)."""

    id: str
    task: str
    retries: int
    #: None for an eager run, which only its caller can continue.
    envelope: StoredPayload | None
    #: Milliseconds from now until the message is due (its countdown or ETA).
    delay_ms: int = 0
    #: How often ``Task.replace`` has passed the id on.
    replacements: int = 0
    #: Hash of the call, if the caller chose the id; a second call with the same hash is not sent.
    args_hash: bytes | None = None


class Unsent(NamedTuple):
    """A message of a task that is not durable."""

    id: str
    task: str
    envelope: StoredPayload


class NewChild(NamedTuple):
    """A child task on its way into the store."""

    #: The promise that its end settles.
    promise: NewPromise
    #: The messages that start it, in the order of sending, with the keys of their rows.
    messages: tuple[tuple[int, Published | Unsent], ...]


class Offspring(NamedTuple):
    """Child tasks that are recorded together with a journal entry."""

    namespace: str
    lease_ms: int
    children: tuple[NewChild, ...]
