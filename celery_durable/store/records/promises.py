"""Promises, and waiting for them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from .values import Stored

__all__ = ["Awaited", "Awaiting", "NewPromise", "PromiseState"]


class PromiseState(Stored, enum.IntEnum):
    """State of a promise. The numbers are stored: never reuse one."""

    PENDING = 0
    RESOLVED = 1
    REJECTED = 2
    EXPIRED = 3
    #: The child task that was to settle it was cancelled; the payload is a text that says why.
    CANCELLED = 4


class NewPromise(NamedTuple):
    """A promise on its way into the store, together with its journal entry."""

    id: str
    name: str
    #: BLAKE3 of the token; None if only the library itself may settle it.
    token_hash: bytes | None = None
    #: From its making to its expiry; None for never.
    timeout_ms: int | None = None
    #: The longest time from one heartbeat to the next; None if none is expected.
    heartbeat_ms: int | None = None
    #: The id by which it is known outside, if a rerun shares another promise; None: its own.
    known_as: str | None = None


class Awaited(NamedTuple):
    """Promises that an execution waits for together."""

    ids: tuple[str, ...]
    #: How many of them must be settled before it continues.
    needed: int


@dataclass(frozen=True)
class Awaiting:
    """The promises that end a suspension, besides the passing of time."""

    groups: tuple[Awaited, ...]
    #: Milliseconds from now until its earliest timer; None if it has none.
    timer_ms: int | None
