"""A lexical scope of a body: the body itself, or one branch of a parallel scope."""

from __future__ import annotations

import threading

from celery_durable.journal.cursor import ReplayCursor
from celery_durable.store.records import place_of

from .leaving import Undoing, Waiting
from .occurrences import Occurrences

__all__ = ["ScopeState"]


class ScopeState:
    """A lexical scope of the body: where its next step stands, and what its journal holds."""

    __slots__ = (
        "_lock",
        "_occurrences",
        "_parallels",
        "cursor",
        "end",
        "lane",
        "left",
        "next_position",
        "open_parallels",
        "path",
    )

    def __init__(self, path: str, lane: str, cursor: ReplayCursor, end: int | None = None) -> None:
        #: "" for the body, "4.0" for the first branch of the scope at position 4, "4.0/2.1" below it.
        self.path = path
        #: What the idempotency keys of this scope's steps contain besides name and arguments.
        self.lane = lane
        self.cursor = cursor
        #: Number of steps that the finished branch had; None where that is not known.
        self.end = end
        self.next_position = 0
        #: The exception that left this scope, because it waits or is undone: it does nothing more in this run.
        self.left: Waiting | Undoing | None = None
        #: Parallel scopes in it that have not ended yet.
        self.open_parallels = 0
        #: How many steps had a fingerprint so far.
        self._occurrences = Occurrences()
        self._parallels = 0
        self._lock = threading.Lock()

    def take_position(self) -> int:
        """The position of a step that is being called."""
        with self._lock:
            position = self.next_position
            self.next_position = position + 1
        return position

    def take_lane(self) -> int:
        """The number of a parallel scope that is being opened."""
        with self._lock:
            lane = self._parallels
            self._parallels = lane + 1
        return lane

    def occurrence(self, fingerprint: bytes) -> int:
        """How many steps with this fingerprint were called before this one."""
        with self._lock:
            return self._occurrences.count(fingerprint)

    def place(self, position: int) -> str:
        return place_of(self.path, position)
