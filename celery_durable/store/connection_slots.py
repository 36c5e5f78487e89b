"""Limits the number of open connections, so that the limit is never exceeded, and no slot is lost."""

from __future__ import annotations

import weakref
from collections import deque

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to have one connection open. Where who had it is gone, however that came, another takes its place."""

    __slots__ = ("_home",)

    def __init__(self, home: deque[Slot]) -> None:
        self._home = weakref.ref(home)

    def __del__(self) -> None:
        home = self._home()
        if home is not None:
            home.append(Slot(home))


class Slots:
    """Those that are free. To take one is one instruction: to open takes long, and others look meanwhile.

    :param most: how many there are.
    """

    def __init__(self, most: int) -> None:
        self._free: deque[Slot] = deque()
        self._free.extend(Slot(self._free) for _ in range(most))

    def take(self) -> Slot | None:
        """One, to be kept for as long as the connection is open; None where all are taken."""
        try:
            return self._free.pop()
        except IndexError:
            return None
