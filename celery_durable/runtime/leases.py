"""What this process owns: the heartbeat that keeps its leases, and small jobs that are not urgent.

One native thread per process, in the process that runs the bodies: under gevent a greenlet would stop beating while a
body computes, and a heartbeat in another process would vouch for a process that hangs.
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

from celery_durable.common.faults import reached
from celery_durable.common.threads import Tended
from celery_durable.errors import DurableError, LeaseLost
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
from celery_durable.store.ownership import Ownership
from celery_durable.store.records import Fence

from .lifeline import Lifeline

__all__ = ["Keeper", "owner_prefix"]

logger = logging.getLogger(__name__)

#: Leases are renewed this many times within the timeout.
_BEATS = 3
#: How often results that were passed on to Celery are marked, in seconds.
_MARK_INTERVAL = 0.5
#: A process that holds nothing stops its heartbeat after this many seconds; it starts again with the next execution.
_IDLE = 5.0
#: Longest pause before it is tried again to write what a run left behind, in seconds; a beat, where that is shorter.
_LONGEST_PAUSE = 5.0

#: Distinguishes this run of the program from every other one on this machine; a pid alone is used again.
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
    :param lifeline: notifies the recovery service of this worker when this process dies.
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
        self._abandoned: deque[_Abandoned] = deque()
        self._heart = Tended(self._beat, "durable-heartbeat", needed=self._is_needed, native=True)
        #: Looks after the other thread of this process, with every beat.
        self.companion: Callable[[], object] = bool

    def hold(self, buffer: ExecutionBuffer) -> None:
        """Renew this lease until :meth:`drop`."""
        self._held[buffer.fence] = buffer
        if not self._lifeline.held:
            self._lifeline.hold()
        self.tend()

    def drop(self, buffer: ExecutionBuffer) -> None:
        """The lease needs no renewal any more."""
        self._held.pop(buffer.fence, None)

    def tell_due(self, seconds: float) -> None:
        """Something of this process is due in this many seconds: the worker's recovery service has to look by then."""
        self._lifeline.tell_due(seconds)

    def dispatched(self, pk: int) -> None:
        """This outcome was passed on to Celery; it is marked soon."""
        self._dispatched.append(pk)
        self.tend()

    def abandon(self, buffer: ExecutionBuffer, writer: JournalWriter, release: Callable[[], None]) -> None:
        """The database could not be reached at the end of a run: write what is left, and let go, when it is back."""
        # Recovery gives an owner one lease to come back, after an outage: it has to look well within that.
        longest = min(_LONGEST_PAUSE, self._lease_timeout / _BEATS)
        self._abandoned.append(_Abandoned(buffer, writer, release, longest))
        self.tend()

    def tend(self) -> bool:
        """Whoever comes by sees to it that the heartbeat lives, where there is something for it to do.

        :returns: whether there is.
        """
        if not self._is_needed():
            return False
        self._heart.ensure()
        return True

    def _beat(self, sleep: Callable[[float], None]) -> None:
        interval = self._lease_timeout / _BEATS
        tick = min(_MARK_INTERVAL, interval)
        needed = time.monotonic()
        due = needed + interval
        while not self._heart.ended:
            sleep(tick)
            if self._is_needed():
                needed = time.monotonic()
            elif time.monotonic() - needed > _IDLE:
                return
            if time.monotonic() >= due:
                self._safely(self._lifeline.hold)
                if self._safely(self.renew):
                    # Else it is tried again at the next beat: recovery waits for no owner.
                    due = time.monotonic() + interval
            # What goes wrong with one of these is no reason to let go of the leases.
            if self._is_needed():
                self._safely(self.companion)
            self._safely(self._mark_what_is_left)
            self._safely(self._retire)

    def _is_needed(self) -> bool:
        return bool(self._held or self._dispatched or self._in_hand or self._abandoned)

    @staticmethod
    def _safely(job: Callable[[], object]) -> bool:
        """Whether it was done."""
        try:
            job()
            return True
        except DurableError as error:
            logger.warning("the heartbeat could not reach the journal: %s", error)
        except Exception:
            logger.exception("the heartbeat failed, and continues")
        return False

    def disown(self) -> None:
        """This process is a fork of the owner: it writes nothing, and gives nothing back."""
        self._lifeline.abandon()
        for buffer in self._held.values():
            buffer.standing.refuse(
                LeaseLost(
                    "this process is a fork of the one that runs the body. What it does is not journaled: steps "
                    "belong in the process of the body. End the fork by os._exit(), and use parallel() to run steps "
                    "in parallel."
                )
            )

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
            elif self._held.pop(fence, None) is not None and not buffer.closed:
                buffer.standing.refuse(LeaseLost("another owner took the execution over, or it was cancelled."))

    def mark(self) -> None:
        """Mark the outcomes that were passed on to Celery. All are marked when this returns, even those of other
        threads.
        """
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
        """The process ends in order: mark what was passed on to Celery."""
        self.mark()
        if not self._held:
            self._lifeline.release()

    @property
    def busy(self) -> bool:
        """Executions run in this process."""
        return bool(self._held)

    def end(self) -> None:
        """Let the heartbeat end: nothing is held here any more."""
        self._heart.end()

    def _retire(self) -> None:
        """Write what is left of runs that ended without the database, each once; if it is still away, another time."""
        for _ in range(len(self._abandoned)):
            item = self._abandoned[0]
            if item.due > time.monotonic():
                self._abandoned.rotate(-1)
                continue
            try:
                done = self._let_go(item)
            except Exception:
                logger.exception("the last entries of execution %d could not be written yet", item.buffer.fence.pk)
                done = False
            if done:
                self._abandoned.popleft()
                self.drop(item.buffer)
                continue
            # The others must not wait for one that cannot be written, and neither may the leases of those that live.
            item.postpone()
            self._abandoned.rotate(-1)
            return

    @staticmethod
    def _let_go(item: _Abandoned) -> bool:
        if not item.writer.settle(item.buffer):
            return False
        with contextlib.suppress(LeaseLost):
            item.release()
        return True


class _Abandoned:
    """What a run left that ended without the database, and how to let go of it.

    :param longest: pause between two tries at most, in seconds.
    """

    def __init__(
        self, buffer: ExecutionBuffer, writer: JournalWriter, release: Callable[[], None], longest: float
    ) -> None:
        self.buffer = buffer
        self.writer = writer
        self.release = release
        #: time.monotonic() of the next try.
        self.due = 0.0
        self._longest = longest
        self._pause = min(_MARK_INTERVAL, longest)

    def postpone(self) -> None:
        self.due = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, self._longest)
