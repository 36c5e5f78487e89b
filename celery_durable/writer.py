"""Appends to the journal: buffered ones, acknowledged ones, and the group commit that serves both.

The thread that needs an acknowledgement commits for everybody: it drains the buffers of all executions of this
process into one transaction. The others find their entries committed when their turn comes. Buffered entries
that nobody asks for are committed by a timer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from .errors import DurableError, JournalUnavailable, LeaseLost
from .faults import reached
from .packing import packed
from .store.journal import Journal
from .store.records import Batch, Birth, Entry, Fence
from .threads import without_signals

__all__ = ["ExecutionBuffer", "JournalWriter"]

logger = logging.getLogger(__name__)

#: How long the timer looks around after the last append, in seconds, and how often at most.
_QUIET: Final = 1.0
_SHORTEST_PAUSE: Final = 0.001


class ExecutionBuffer:
    """What one execution has appended and not yet committed."""

    __slots__ = (
        "birth",
        "born",
        "cancelled",
        "closed",
        "committed",
        "degraded",
        "dirty_since",
        "failure",
        "fence",
        "generation",
        "limbo",
        "pending",
        "steps",
        "total",
        "verified_at",
    )

    def __init__(self, fence: Fence, generation: int, verified_at: float, birth: Birth | None = None) -> None:
        self.fence = fence
        self.generation = generation
        self.pending: list[Entry] = []
        #: Steps that the pending entries finish.
        self.steps = 0
        #: Batches whose commit was not acknowledged: perhaps they are in, perhaps not.
        self.limbo: list[Batch] = []
        #: Entries appended, and entries known to be committed.
        self.total = 0
        self.committed = 0
        #: Goes in with the next batch: there is no row yet.
        self.birth = birth
        #: The row is known to be there.
        self.born = birth is None
        #: time.monotonic() of the first append that is not committed yet.
        self.dirty_since = 0.0
        #: Its cancellation was asked for; what it appends is still committed.
        self.cancelled = False
        #: Why nothing may be appended any more.
        self.failure: DurableError | None = None
        self.closed = False
        #: The journal is unreachable and the application chose to run without durability.
        self.degraded = False
        #: time.monotonic() just before the latest transaction that verified the lease.
        self.verified_at = verified_at


class JournalWriter:
    """Buffers and commits the entries of all executions of this process.

    :param flush_interval: seconds within which a buffered entry is committed.
    :param ack_timeout: longest wait for an acknowledged commit, in seconds.
    """

    def __init__(self, journal: Journal, *, flush_interval: float, ack_timeout: float) -> None:
        self._journal = journal
        self._flush_interval = flush_interval
        self._ack_timeout = ack_timeout
        self._dirty: dict[Fence, ExecutionBuffer] = {}
        #: Guards the buffers; held for a few instructions only.
        self._lock = threading.Lock()
        #: Held by the leader of a group commit.
        self._commit_lock = threading.Lock()
        self._wake = threading.Event()
        self._timer: threading.Thread | None = None
        #: The timer looks around, so that nobody needs to wake it. Guarded by the lock.
        self._watching = False

    # -- appending ------------------------------------------------------------------------------------------

    def append(self, buffer: ExecutionBuffer, entry: Entry, *, finishes: bool = False) -> None:
        """Take an entry; it is committed within ``flush_interval``, or by the next :meth:`flush`.

        :param finishes: the entry finishes a step.
        :raises LeaseLost: when the execution is known to be somebody else's.
        """
        if buffer.failure is not None:
            raise buffer.failure
        with self._lock:
            buffer.pending.append(entry)
            buffer.total += 1
            buffer.steps += finishes
            fresh = buffer.fence not in self._dirty
            if fresh:
                self._soil(buffer)
            asleep = not self._watching
        if fresh and asleep:
            self._arm()

    def announce(self, buffer: ExecutionBuffer) -> None:
        """A run begins whose row is not written yet: that is a thing to commit, too."""
        with self._lock:
            self._soil(buffer)
        self._arm()

    def _soil(self, buffer: ExecutionBuffer) -> None:
        buffer.dirty_since = time.monotonic()
        self._dirty[buffer.fence] = buffer

    def amend(self, buffer: ExecutionBuffer, entry: Entry) -> None:
        """Take an entry although the run has failed: it is committed with what that leaves behind."""
        with self._lock:
            buffer.pending.append(entry)
            buffer.total += 1
            self._soil(buffer)

    def flush(self, buffer: ExecutionBuffer) -> None:
        """Return when everything appended to ``buffer`` so far is committed under its lease.

        :raises LeaseLost: another owner took over; nothing was committed.
        :raises JournalUnavailable: it could not be committed in time; perhaps some of it was. The error stays:
            every later append of this execution raises it too.
        """
        ticket = buffer.total
        if buffer.failure is not None:
            raise buffer.failure
        if (buffer.committed >= ticket and buffer.born) or buffer.degraded:
            return
        if not self._commit_lock.acquire(timeout=self._ack_timeout):
            raise self._broken(buffer, f"no commit was possible within {self._ack_timeout:g} s (durable_ack_timeout).")
        try:
            if (buffer.committed < ticket or not buffer.born) and buffer.failure is None:
                self._commit()
        except JournalUnavailable as error:
            if buffer.committed < ticket or not buffer.born:
                raise self._broken(buffer, error.message) from error
        finally:
            self._commit_lock.release()
        if buffer.failure is not None:
            raise buffer.failure

    def drain(self, buffer: ExecutionBuffer) -> Batch:
        """Take what is left, for a transaction that ends this owner's run; nothing may be appended after it.

        :raises LeaseLost: as :meth:`flush`.
        :raises JournalUnavailable: as :meth:`flush`.
        """
        if not self._commit_lock.acquire(timeout=self._ack_timeout):
            raise self._broken(buffer, f"no commit was possible within {self._ack_timeout:g} s (durable_ack_timeout).")
        try:
            # Nobody's commit is under way now. What has an unknown fate must be settled on its own.
            if buffer.limbo and buffer.failure is None:
                try:
                    self._commit()
                except JournalUnavailable as error:
                    if buffer.limbo:
                        raise self._broken(buffer, error.message) from error
            if buffer.failure is not None:
                raise buffer.failure
            with self._lock:
                self._dirty.pop(buffer.fence, None)
                batch = self._take(buffer)
                buffer.closed = True
            return packed(batch)
        finally:
            self._commit_lock.release()

    def give_back(self, buffer: ExecutionBuffer, batch: Batch) -> None:
        """A drained batch could not be committed: keep it, as a batch of unknown fate."""
        with self._lock:
            buffer.limbo.append(batch)
            buffer.closed = False
            self._soil(buffer)

    def settle(self, buffer: ExecutionBuffer) -> bool:
        """Try once to commit what an abandoned execution left behind.

        :returns: True when nothing is left: all is committed, or the execution is somebody else's.
        """
        if isinstance(buffer.failure, LeaseLost):
            return True
        with self._commit_lock:
            try:
                self._commit()
            except JournalUnavailable:
                return False
        return not buffer.limbo and not buffer.pending

    # -- committing -----------------------------------------------------------------------------------------

    def _take(self, buffer: ExecutionBuffer) -> Batch:
        entries = buffer.pending
        batch = Batch(
            buffer.fence,
            buffer.generation,
            tuple(entries),
            buffer.steps,
            birth=buffer.birth,
            appended=len(entries),
        )
        buffer.pending = []
        buffer.steps = 0
        buffer.birth = None
        return batch

    def _commit(self) -> None:
        """Commit everything of everybody. The caller holds the commit lock."""
        work = []
        with self._lock:
            for buffer in self._dirty.values():
                batches, buffer.limbo = buffer.limbo, []
                if buffer.pending or buffer.birth is not None:
                    batches.append(self._take(buffer))
                work.append((buffer, batches))
            self._dirty.clear()
        before = time.monotonic()
        reached("writer.before_commit")
        try:
            whole = []
            for _, batches in work:
                # Those who append need not wait for it. What is packed already has nothing more to pack.
                batches[:] = map(packed, batches)
                whole += batches
            cancelled: set[Fence] = set()
            lost = self._journal.append(whole, cancelled)
        except BaseException:
            self._put_back(work)
            raise
        reached("writer.after_commit")
        for buffer, batches in work:
            if buffer.fence in lost:
                buffer.failure = LeaseLost(
                    "another owner took the execution over, or it was cancelled; nothing of this owner is committed "
                    "any more."
                )
            else:
                for batch in batches:
                    buffer.committed += batch.appended
                buffer.verified_at = before
                buffer.born = True
                buffer.cancelled = buffer.fence in cancelled

    def _put_back(self, work: Sequence[tuple[ExecutionBuffer, list[Batch]]]) -> None:
        with self._lock:
            for buffer, batches in work:
                # In front: the order within an execution is the order of its entries.
                buffer.limbo = [b._replace(again=True) for b in batches] + buffer.limbo
                self._soil(buffer)

    @staticmethod
    def _broken(buffer: ExecutionBuffer, reason: str) -> JournalUnavailable:
        error = JournalUnavailable(reason)
        if buffer.failure is None:
            buffer.failure = error
        return error

    # -- timer ----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is None:
            self._start_timer()
        if not self._wake.is_set():
            self._wake.set()

    def _start_timer(self) -> None:
        with self._lock:
            if self._timer is not None:
                return
            self._timer = threading.Thread(target=self._tick, name="durable-flush", daemon=True)
        with without_signals():
            self._timer.start()

    def _tick(self) -> None:
        # While there is work the timer looks around by itself: to wake a thread costs a body more than to be watched.
        pause = max(self._flush_interval / 2, _SHORTEST_PAUSE)
        while True:
            self._wake.wait()
            self._wake.clear()
            quiet_since = time.monotonic()
            while self._goes_on(quiet_since):
                due = self._due()
                if due is None:
                    time.sleep(pause)
                    continue
                quiet_since = time.monotonic()
                if due > 0:
                    time.sleep(due)
                else:
                    self._commit_for_timer()

    def _goes_on(self, quiet_since: float) -> bool:
        with self._lock:
            self._watching = bool(self._dirty) or time.monotonic() - quiet_since < _QUIET
            return self._watching

    def _due(self) -> float | None:
        """Seconds until what is dirty must be committed: much is committed sooner by those who wait for it.

        :returns: None where nothing is.
        """
        with self._lock:
            oldest = min((b.dirty_since for b in self._dirty.values()), default=None)
        return None if oldest is None else oldest + self._flush_interval - time.monotonic()

    def _commit_for_timer(self) -> None:
        with self._commit_lock:
            try:
                if self._dirty:
                    self._commit()
            except JournalUnavailable as error:
                # Buffered entries may wait: the next acknowledged commit will speak for the body.
                logger.warning("buffered journal entries could not be committed yet: %s", error)
            except Exception:
                logger.exception("the journal's flush timer failed; it goes on")
                time.sleep(1.0)
