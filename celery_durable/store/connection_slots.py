"""Limits the number of open connections, so that the limit is never exceeded, and no slot is lost."""

from __future__ import annotations

import weakref
from collections import deque

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to have one connection open. When its holder is garbage-collected, a new slot takes its place."""

    __slots__ = ("_home",)

    def __init__(self, home: deque[Slot]) -> None:
        self._home = weakref.ref(home)

    def __del__(self) -> None:
        home = self._home()
        if home is not None:
            home.append(Slot(home))


class Slots:
    """The free slots. Taking one is a single instruction, so threads that take slots at the same time do not conflict.

    :param most: how many slots there are.
    """

    def __init__(self, most: int) -> None:
        self._free: deque[Slot] = deque()
        self._free.extend(Slot(self._free) for _ in range(most))

    def take(self) -> Slot | None:
        """A slot, to be kept for as long as the connection is open; None if all are taken."""
        try:
            return self._free.pop()
        except IndexError:
            return None
