"""The thread that commits entries that nobody waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from celery_durable.common.threads import Bell, Tended

__all__ = ["FlushTimer"]

#: How long the thread keeps checking after the last append, and its shortest pause, in seconds.
_QUIET: Final = 1.0
_SHORTEST_PAUSE: Final = 0.001
#: It ends after this many seconds without an append; the next append starts it again.
_IDLE: Final = 5.0


class FlushTimer:
    """Commits entries that have waited long enough, in a thread that runs while there is something to do.

    :param interval: seconds within which an entry is to be committed.
    :param due: seconds until something must be committed; None if nothing waits.
    :param commit: commits what is due; False if another try makes no sense for a while.
    """

    def __init__(self, interval: float, *, due: Callable[[], float | None], commit: Callable[[], bool]) -> None:
        self._pause = max(interval / 2, _SHORTEST_PAUSE)
        self._due = due
        self._commit = commit
        self._bell = Bell()
        self._thread = Tended(self._run, "durable-flush", needed=lambda: due() is not None)
        #: The thread checks regularly, so nobody needs to wake it.
        self.watching = False
        #: Called regularly by the thread: keeps the process's other thread alive, and is True while that is needed.
        self.companion: Callable[[], bool] = bool

    def rouse(self) -> None:
        """Start or wake the thread: an entry waits, and nobody is watching."""
        self._thread.ensure()
        self._bell.ring()

    def tend(self) -> None:
        """Restart the thread if it has died, and commit in its place if it is late."""
        alive = self._thread.ensure()
        due = self._due()
        if due is not None and due < -_QUIET:
            self._bell.ring()
            if not alive:
                self._commit()

    def end(self) -> None:
        """Let the thread end: nothing is appended any more."""
        self._thread.end()
        self._bell.ring()

    def _run(self, sleep: Callable[[float], None]) -> None:
        try:
            self._watch(sleep)
        finally:
            self.watching = False  # the next append starts the thread again

    def _watch(self, sleep: Callable[[float], None]) -> None:
        needed = time.monotonic()
        while not self._thread.ended:
            # In this order, because an append first marks its buffer as dirty, then checks `watching`.
            self.watching = False
            if self._due() is None and not self._bell.wait(_QUIET):
                if not self.companion() and time.monotonic() - needed > _IDLE:
                    return
                continue
            self.watching = True
            self._look_around(sleep)
            needed = time.monotonic()

    def _look_around(self, sleep: Callable[[float], None]) -> None:
        """Check regularly while there is work: for a body, this is cheaper than to wake the thread each time."""
        looked = quiet_since = time.monotonic()
        while not self._thread.ended:
            due = self._due()
            if due is None:
                if time.monotonic() - quiet_since >= _QUIET:
                    return
                sleep(self._pause)
            elif due > 0:
                sleep(due)
            else:
                quiet_since = time.monotonic()
                # Another thread may be committing.
                sleep(self._pause if self._commit() else _QUIET)
            if time.monotonic() - looked > _QUIET:
                looked = time.monotonic()
                self.companion()
