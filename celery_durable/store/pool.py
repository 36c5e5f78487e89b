"""A pool of connections that still works after an exception was raised at any instruction of a user.

SQLAlchemy's own pool waits on a condition of the standard library. If a soft time limit is raised in a thread just as
it acquires the condition, this stays locked, and no thread of the process gets a connection again.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import Any, Final

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from celery_durable.common.threads import Bell

from .connection_slots import Slots

__all__ = ["ConnectionPool"]

#: A thread that waits for a connection checks by itself after this many seconds: the one that was to wake it may be
#: gone.
_LOOK: Final = 0.5
#: Key under which an open connection keeps its slot.
_SLOT: Final = "durable_slot"


class ConnectionPool(Pool):
    """Hands out the connection that was used last. Changed by single atomic operations only, and never locked.

    :param kept: how many unused connections are kept open.
    :param most: how many connections there are at most; a thread that needs one more waits.
    :param patience: how long it waits, in seconds.
    """

    def __init__(self, creator: Any, kept: int = 8, most: int = 32, patience: float = 30.0, **options: Any) -> None:
        super().__init__(creator, **options)
        self._kept, self._most, self._patience = kept, most, patience
        #: A journal in memory with two connections would be two journals.
        self._slots = Slots(most)
        self._idle: deque[ConnectionPoolEntry] = deque()
        #: All open connections. If an exception interrupts a connection's user, it is dropped from here.
        self._entries: weakref.WeakSet[ConnectionPoolEntry] = weakref.WeakSet()
        #: Threads that wait for a connection, in the order of arrival.
        self._waiting: dict[Bell, None] = {}

    def _do_get(self) -> ConnectionPoolEntry:
        entry = self._pop() or self._open()
        deadline = time.monotonic() + self._patience
        while entry is None:
            bell = Bell()
            self._waiting[bell] = None
            try:
                # Try again: from now on, a thread that gives one back sees that somebody waits.
                entry = self._pop() or self._open()
                left = deadline - time.monotonic()
                if entry is None and left <= 0:
                    raise exc.TimeoutError(f"none of {self._most} connections was free within {self._patience:g} s")
                if entry is None:
                    bell.wait(min(left, _LOOK))
            finally:
                self._waiting.pop(bell, None)
        return entry

    def _pop(self) -> ConnectionPoolEntry | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _open(self) -> ConnectionPoolEntry | None:
        slot = self._slots.take()
        if slot is None:
            return None
        try:
            entry = self._create_connection()
        except BaseException:
            # The error keeps this frame alive, perhaps for long; it must not keep the slot.
            del slot
            raise
        entry.__dict__[_SLOT] = slot
        self._entries.add(entry)
        return entry

    def _close(self, entry: ConnectionPoolEntry) -> None:
        self._entries.discard(entry)
        try:
            entry.close()
        finally:
            entry.__dict__.pop(_SLOT, None)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._waiting or len(self._idle) < self._kept:
            self._idle.append(record)
        else:
            self._close(record)
        for bell in list(self._waiting)[:1]:
            self._waiting.pop(bell, None)
            bell.ring()

    def recreate(self) -> ConnectionPool:
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator,
            kept=self._kept,
            most=self._most,
            patience=self._patience,
            pre_ping=self._pre_ping,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        while (entry := self._pop()) is not None:
            self._close(entry)

    def checkedout(self) -> int:
        """Connections that are in use, by the name that SQLAlchemy's own pools have for it."""
        return len(self._entries) - len(self._idle)

    def status(self) -> str:
        return f"{len(self._entries)} connections, {len(self._idle)} of them idle, {len(self._waiting)} wait"
