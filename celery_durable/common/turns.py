"""One at a time, and a thread that is interrupted in the middle leaves nothing behind.

A lock that is taken in one instruction and guarded in the next is held for ever if an exception is raised in the thread
in between. The soft time limit does that, anywhere in the main thread of a pool process. A turn is taken and given up
in a single instruction each, and its owner is known before.
"""

from __future__ import annotations

__all__ = ["Turn", "Turns"]


class Turn:
    """A right that at most one of a series has. Whoever makes one sets ``over`` at the end, whatever happens."""

    __slots__ = ("_next", "over")

    def __init__(self, over: bool = False) -> None:
        self.over = over
        #: Who came after this one: the first to write wins, in one instruction.
        self._next: dict[None, Turn] = {}


class Turns:
    """A series of turns, of which only the last can be under way. Also for greenlets next to native threads."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = Turn(over=True)

    def take(self, turn: Turn) -> bool:
        """True where ``turn`` is under way now; False while another one is."""
        last = self._last
        while last.over:
            following = last._next.setdefault(None, turn)
            if following is turn:
                # Should this not be reached: who comes later finds the way by itself.
                self._last = turn
                return True
            last = following
        return last is turn
