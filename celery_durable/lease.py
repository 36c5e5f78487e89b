"""What this process owns: the heartbeat that keeps its leases, and the small jobs that need no hurry.

One native thread per process, in the process that runs the bodies: under gevent a greenlet would fall silent while
a body computes, and a heartbeat elsewhere would vouch for a process that hangs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable

from .errors import DurableError, LeaseLost
from .faults import reached
from .store.ownership import Ownership
from .store.records import Fence
from .threads import native_thread
from .worker.control import Lifeline
from .writer import ExecutionBuffer, JournalWriter

__all__ = ["Keeper", "owner_prefix"]

logger = logging.getLogger(__name__)

#: Leases are renewed this many times within the time-out.
_BEATS = 3
#: How often results that Celery has been told are marked, in seconds.
_MARK_INTERVAL = 0.5

#: Tells this machine's boot of the program from every other one; a pid alone comes back.
_BOOT = secrets.token_hex(6)


def owner_prefix() -> str:
    """What the owner ids of this process begin with; unique among all processes."""
    return _owner_prefix(os.getpid())


@functools.lru_cache(maxsize=1)
def _owner_prefix(pid: int) -> str:
    host = socket.gethostname().split(".")[0].encode("ascii", "ignore").decode()[:32] or "host"
    return f"{host}:{pid}:{_BOOT}:"


class Keeper:
    """Keeps the leases of this process.

    Its containers are touched by single atomic operations only, and never locked: body and heartbeat may live in
    different worlds (greenlets and a native thread).

    :param ownership: over a connection of its own.
    :param lease_timeout: seconds.
    :param lifeline: tells the recovery service of this worker when this process dies.
    """

    def __init__(self, ownership: Ownership, *, lease_timeout: float, lifeline: Lifeline) -> None:
        self._ownership = ownership
        self._lifeline = lifeline
        self._lease_timeout = lease_timeout
        self._held: dict[Fence, ExecutionBuffer] = {}
        self._dispatched: deque[int] = deque()
        #: As many items as threads that mark something at this moment.
        self._in_hand: list[bool] = []
        #: Runs that ended without the database: what they left, and how to let go of it.
        self._abandoned: list[tuple[ExecutionBuffer, JournalWriter, Callable[[], None]]] = []
        self._started = False

    def hold(self, buffer: ExecutionBuffer) -> None:
        """Renew this lease until :meth:`drop`."""
        self._held[buffer.fence] = buffer
        if not self._lifeline.held:
            self._lifeline.hold()
        self._start()

    def drop(self, buffer: ExecutionBuffer) -> None:
        """The lease needs no renewal any more."""
        self._held.pop(buffer.fence, None)

    def tell_due(self, seconds: float) -> None:
        """Something of this process is due in so many seconds: the worker's recovery service is to look by then."""
        self._lifeline.tell_due(seconds)

    def dispatched(self, pk: int) -> None:
        """Celery was told this outcome; it is marked soon."""
        self._dispatched.append(pk)
        self._start()

    def abandon(self, buffer: ExecutionBuffer, writer: JournalWriter, release: Callable[[], None]) -> None:
        """The database could not be reached at the end of a run: write what is left, and let go, when it is back."""
        self._abandoned.append((buffer, writer, release))
        self._start()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            native_thread(self._beat, "durable-heartbeat")

    def _beat(self, sleep: Callable[[float], None]) -> None:
        interval = self._lease_timeout / _BEATS
        tick = min(_MARK_INTERVAL, interval)
        due = time.monotonic() + interval
        while True:
            sleep(tick)
            try:
                self._mark_what_is_left()
                self._retire()
                if time.monotonic() >= due:
                    due = time.monotonic() + interval
                    self._lifeline.hold()
                    self.renew()
            except DurableError as error:
                logger.warning("the heartbeat could not reach the journal: %s", error)
            except Exception:
                logger.exception("the heartbeat failed; it goes on")

    def renew(self) -> None:
        """Prolong all leases; those that are gone are noticed."""
        # An execution whose row is still to be written has no lease that could run out.
        held = {fence: buffer for fence, buffer in dict(self._held).items() if buffer.born}
        if not held:
            return
        reached("lease.before_renew")
        before = time.monotonic()
        lost = self._ownership.renew(list(held))
        for fence, buffer in held.items():
            if fence not in lost:
                buffer.verified_at = max(buffer.verified_at, before)
            elif self._held.pop(fence, None) is not None and not buffer.closed and buffer.failure is None:
                buffer.failure = LeaseLost("another owner took the execution over, or it was cancelled.")

    def mark(self) -> None:
        """Mark the outcomes that Celery was told: all are when this returns, whoever had them in hand."""
        self._mark_what_is_left()
        while self._in_hand:
            time.sleep(0.002)
        self._mark_what_is_left()  # another thread may have failed with it

    def _mark_what_is_left(self) -> None:
        if not self._dispatched:
            return
        taken = []
        self._in_hand.append(True)
        try:
            # Heartbeat and bodies may both be here; each takes what the other has not.
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(self._dispatched.popleft())
            self._ownership.mark_dispatched(taken)
        except BaseException:
            self._dispatched.extend(taken)
            raise
        finally:
            self._in_hand.pop()

    def close(self) -> None:
        """The process ends in order: mark what Celery was told."""
        self.mark()
        if not self._held:
            self._lifeline.release()

    def _retire(self) -> None:
        for item in list(self._abandoned):
            buffer, writer, release = item
            if not writer.settle(buffer):
                continue
            try:
                release()
            except LeaseLost:
                pass
            self._abandoned.remove(item)
            self.drop(buffer)
