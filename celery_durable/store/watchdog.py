"""Ends waits for a server that does not answer at all.

A server that hangs, or a network that drops packets, raises no error: a driver would wait for ever, and with it the
body, its lease and its process. So a connection that has passed its deadline is shut down from another thread, and its
driver finds it lost.
"""

from __future__ import annotations

import _socket  # gevent replaces those of the module ``socket``, which a native thread could not use
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import Engine

from celery_durable.common.threads import Tended, close_at_once

__all__ = ["Watchdog"]


class Watchdog:
    """Guards the connections that a thread uses within :meth:`until`.

    Its table is changed by single atomic operations only, and never locked: users of connections may be greenlets,
    while the watchdog is a native thread.

    :param tick: how often it checks, in seconds; a wait may end that much later.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        #: Number -> (deadline, descriptor). Code that removes an item closes its descriptor.
        self._guarded: dict[int, tuple[float, int]] = {}
        self._numbers = itertools.count()
        self._here = threading.local()
        watchdog = weakref.ref(self)  # its thread must not keep it alive
        self._thread = Tended(lambda sleep: _patrol(watchdog, sleep), "durable-watchdog", native=True)

    def attend(self, engine: Engine, connect: Callable[[Any, Any, Any], Any] | None = None) -> None:
        """Guard the connections of this engine, if their driver gives access to the socket.

        :param connect: makes one, of dialect, arguments and parameters; None: as the dialect does.
        """

        def guarded(dialect: Any, record: Any, args: Any, parameters: Any) -> Any:
            # SQLAlchemy's queries at the first connection may hang too.
            connection = connect(dialect, args, parameters) if connect else dialect.connect(*args, **parameters)
            self._guard(connection)
            return connection

        event.listen(engine, "do_connect", guarded)
        event.listen(engine, "checkout", self._check_out)

    def until(self, deadline: float) -> contextlib.AbstractContextManager[None]:
        """A wait of this thread that lasts until ``deadline`` (``time.monotonic()``) fails then.

        :raises sqlalchemy.exc.TimeoutError: instead of the driver's error.
        """
        return _Until(self, deadline)

    def guard(self, descriptor: int, deadline: float) -> int:
        """Guard a descriptor, which belongs to the caller unless :meth:`forget` returns False.

        Unlike SQLAlchemy's connections, it needs no :meth:`until`.

        :returns: its number here.
        """
        number = next(self._numbers)
        self._guarded[number] = (deadline, descriptor)
        self._thread.ensure()
        return number

    def forget(self, number: int) -> bool:
        """Stop guarding; False if the deadline has passed: then the descriptor is shut down and will be closed."""
        return self._guarded.pop(number, None) is not None

    def _release(self, numbers: list[int]) -> bool:
        """Stop guarding these; False if one of them has passed its deadline."""
        taken = [self._guarded.pop(number, None) for number in numbers]
        numbers.clear()
        for guarded in taken:
            if guarded is not None:
                close_at_once(guarded[1])
        return None not in taken

    def look(self) -> None:
        """Shut down connections that are past their deadline."""
        now = time.monotonic()
        for number, (deadline, _) in list(self._guarded.items()):
            guarded = self._guarded.pop(number, None) if deadline <= now else None
            if guarded is None:
                continue
            late = _socket.socket(fileno=guarded[1])
            with contextlib.suppress(OSError):
                late.shutdown(_socket.SHUT_RDWR)
            late.close()

    def _check_out(self, connection: Any, record: Any, proxy: Any) -> None:
        try:
            self._guard(connection)
        except Exception as error:
            raise exc.DisconnectionError("the connection has no socket any more") from error

    def _guard(self, connection: Any) -> None:
        guard = getattr(self._here, "guard", None)
        # An asyncio driver is inside SQLAlchemy's wrapper.
        fileno = getattr(getattr(connection, "driver_connection", connection), "fileno", None)
        if guard is None or fileno is None:
            return
        deadline, numbers = guard
        # A duplicate: the driver may close its own descriptor at any moment, and the system may then reuse its number.
        own = os.dup(fileno())
        numbers.append(self.guard(own, deadline))


class _Until:
    """A class, because a generator would cost more than the code inside."""

    __slots__ = ("_before", "_deadline", "_numbers", "_watchdog")

    def __init__(self, watchdog: Watchdog, deadline: float) -> None:
        self._watchdog = watchdog
        self._deadline = deadline
        self._numbers: list[int] = []

    def __enter__(self) -> None:
        here = self._watchdog._here
        self._before = getattr(here, "guard", None)
        here.guard = (self._deadline, self._numbers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog._here.guard = self._before
        if self._numbers and not self._watchdog._release(self._numbers) and isinstance(error, exc.DBAPIError):
            raise exc.TimeoutError("the server did not answer") from error


def _patrol(watchdog: weakref.ref[Watchdog], sleep: Callable[[float], None]) -> None:
    while (here := watchdog()) is not None:
        here.look()
        tick = here._tick
        del here
        sleep(tick)
