"""Threads that wait for a commit which another thread makes for them."""

from __future__ import annotations

from celery_durable.common.threads import Bell

from .buffer import ExecutionBuffer

__all__ = ["Waiter", "Waiters"]


class Waiter:
    """A thread that waits until an execution's entries are committed."""

    __slots__ = ("bell", "buffer", "number")

    def __init__(self, buffer: ExecutionBuffer, number: int) -> None:
        self.buffer = buffer
        self.number = number
        self.bell = Bell()

    def may_go(self) -> bool:
        return self.buffer.has(self.number) or self.buffer.standing.refused is not None


class Waiters:
    """All waiting threads, in the order of arrival. The table is changed by single atomic operations only."""

    def __init__(self) -> None:
        self._all: dict[Waiter, None] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    def enter(self, buffer: ExecutionBuffer, number: int) -> Waiter:
        """Wait for an execution's entries up to this number."""
        waiter = Waiter(buffer, number)
        self._all[waiter] = None
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self._all.pop(waiter, None)

    def wake(self, *, leader: bool = True) -> None:
        """Wake the threads whose entries are committed, and one of the others, which commits for the rest."""
        for waiter in list(self._all):
            if waiter.may_go():
                self._all.pop(waiter, None)
                waiter.bell.ring()
            elif leader:
                leader = False
                waiter.bell.ring()
