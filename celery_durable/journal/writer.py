"""Appends to the journal: buffered ones, acknowledged ones, and the group commit that serves both.

A thread that needs an acknowledgement commits for all, the oldest first, until its own entries are committed. The other
threads wait. Those whose entries are committed continue at once, and one of the rest commits next. Buffered entries
that nobody waits for are committed by a timer (:mod:`.flush_timer`).

A commit holds nothing that is not in a buffer's queue (:mod:`.buffer`). So if it is interrupted at any instruction, for
example by a soft time limit, the next commit finds everything that is left to be done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from celery_durable.common.faults import reached
from celery_durable.common.turns import Turn, Turns
from celery_durable.errors import EntryRefused, JournalUnavailable, LeaseLost
from celery_durable.store.journal import Journal, NotStorable
from celery_durable.store.records import Batch, Entry, EntryKind, Fence

from .buffer import BATCH_BYTES, BATCH_ENTRIES, COMMIT_BYTES, COMPANY, NOBODY, ExecutionBuffer, oldest
from .flush_timer import FlushTimer
from .packing import packed
from .waiters import Waiters

__all__ = ["ExecutionBuffer", "JournalWriter"]

logger = logging.getLogger(__name__)

#: A batch, and the execution that it belongs to.
_Piece = tuple[ExecutionBuffer, Batch]

#: A thread that waits for a commit checks by itself after this many seconds: the one that was to wake it may be gone.
_LOOK: Final = 0.5
#: The same for a thread that waits, after the end of a run, for another thread's commit.
_PAUSE: Final = 0.001
#: An execution that has appended this much, in bytes or entries, commits before it appends more.
_MOST_BYTES: Final = 4 * BATCH_BYTES
_MOST_ENTRIES: Final = 4 * BATCH_ENTRIES

#: These report what has happened, which is true whatever becomes of the run; others are what the body meant to do.
_HAPPENED: Final = frozenset({EntryKind.ATTEMPT, EntryKind.RESULT, EntryKind.ERROR, EntryKind.LOST})


class JournalWriter:
    """Buffers and commits the entries of all executions of this process.

    Appending takes no lock: queues and the two tables below are changed by single atomic operations only.

    :param flush_interval: seconds within which a buffered entry is committed.
    :param ack_timeout: longest wait for an acknowledged commit, in seconds.
    """

    def __init__(self, journal: Journal, *, flush_interval: float, ack_timeout: float) -> None:
        self._journal = journal
        self._flush_interval = flush_interval
        self._ack_timeout = ack_timeout
        #: Executions with something to commit; the one that has waited longest comes first.
        self._dirty: dict[Fence, ExecutionBuffer] = {}
        #: Threads that wait for a commit, in the order of arrival.
        self._waiting = Waiters()
        #: The thread that leads a group commit has the turn: one at a time, or there would be no groups.
        self._leading = Turns()
        #: Guards the making of batches from the queues' entries: one thread at a time. Held for a few instructions,
        #: and by ``with``, which takes a lock that is written in C in one instruction.
        self._sealing = threading.Lock()
        #: time.monotonic() when the database last accepted a commit.
        self._answered = 0.0
        #: Commits entries that nobody waits for.
        self.timer = FlushTimer(flush_interval, due=self._due, commit=self._commit_due)

    # -- appending ------------------------------------------------------------------------------------------

    def append(self, buffer: ExecutionBuffer, entry: Entry, *, finishes: bool = False) -> None:
        """Take an entry; it is committed within ``flush_interval``, or by the next :meth:`flush`.

        :param finishes: the entry finishes a step.
        :raises LeaseLost: when the execution is known to belong to another owner.
        :raises JournalUnavailable: when a flush of this execution has failed, or one that this append needed, because
            too much was waiting. An entry that reports what has happened is kept anyway.
        """
        refused = buffer.standing.refused
        if refused is not None:
            if entry.kind in _HAPPENED and not isinstance(refused, LeaseLost):
                self.amend(buffer, entry)
            raise refused
        queue = buffer.queue
        queue.append((finishes, entry))
        # In this order: a commit first takes the buffer off the table, then checks whether its queue is empty.
        if buffer.fence not in self._dirty:
            self._soil(buffer)
        elif not self.timer.watching:
            self.timer.tend()  # its thread has died, or could not be started
        payload = entry.payload
        if payload is not None:
            buffer.bytes += len(payload.data)
        if buffer.bytes > _MOST_BYTES or len(queue) > _MOST_ENTRIES:
            self.flush(buffer)

    def announce(self, buffer: ExecutionBuffer) -> None:
        """Note that a run begins whose row must still be committed."""
        self._soil(buffer)

    def amend(self, buffer: ExecutionBuffer, entry: Entry) -> None:
        """Take an entry although the run has failed: it is committed with the other entries that are left."""
        buffer.queue.append((False, entry))
        self._soil(buffer)

    def _soil(self, buffer: ExecutionBuffer) -> None:
        buffer.dirty_since = time.monotonic()
        self._dirty[buffer.fence] = buffer
        if not self.timer.watching:
            self.timer.rouse()

    def flush(self, buffer: ExecutionBuffer) -> None:
        """Return when everything appended to ``buffer`` so far is committed under its lease.

        :raises LeaseLost: another owner took over; nothing was committed.
        :raises EntryRefused: the database does not take it, though it takes what others write.
        :raises JournalUnavailable: the database took nothing for ``ack_timeout``; perhaps some of it was committed.
        :raises DurableError: any of these stays: every later append of this execution raises it too.
        """
        if buffer.standing.refused is not None:
            raise buffer.standing.refused
        with self._sealing:
            number = buffer.last
        if buffer.standing.degraded or buffer.has(number):
            return
        if buffer.fence not in self._dirty:
            self._soil(buffer)
        if not self._commit_for(buffer, number):
            self._wait(buffer, number)
        if buffer.standing.refused is not None:
            raise buffer.standing.refused

    def _wait(self, buffer: ExecutionBuffer, number: int) -> None:
        """Let another thread commit for us, or commit for others, until our entries are committed or cannot be."""
        began = time.monotonic()
        waiter = self._waiting.enter(buffer, number)
        try:
            # From now on, a thread that leads sees that somebody waits.
            while not waiter.may_go() and not self._commit_for(buffer, number):
                # As long as commits of others succeed, ours will come.
                left = max(began, self._answered) + self._ack_timeout - time.monotonic()
                if left <= 0:
                    limit = f"{self._ack_timeout:g} s (durable_ack_timeout)"
                    raise self._broken(buffer, f"no commit was possible within {limit}.")
                waiter.bell.wait(min(left, _LOOK))
        finally:
            self._waiting.leave(waiter)

    def drain(self, buffer: ExecutionBuffer) -> Batch:
        """The entries that are left, for the transaction that ends this owner's run; nothing may be appended after it.

        They stay in the queue, because that transaction may fail: see :meth:`reopen`.

        :raises LeaseLost, EntryRefused, JournalUnavailable: as :meth:`flush`.
        """
        while True:
            if buffer.standing.refused is not None:
                raise buffer.standing.refused
            with self._sealing:
                # Batches of unknown fate, or under way, must be settled first.
                if buffer.hand.over and not buffer.told() and buffer.bytes <= COMMIT_BYTES:
                    buffer.closed = True
                    self._dirty.pop(buffer.fence, None)
                    return packed(buffer.take())
            self.flush(buffer)

    def discard(self, buffer: ExecutionBuffer) -> None:
        """Drop what was drained: it is of no use any more."""
        with self._sealing:
            buffer.queue.clear()

    def reopen(self, buffer: ExecutionBuffer) -> None:
        """Note that the transaction with the drained batch has failed: the batch may or may not be committed."""
        buffer.closed = False
        self._soil(buffer)

    def settle(self, buffer: ExecutionBuffer) -> bool:
        """Try once to commit what an abandoned execution left behind, and nothing else.

        :returns: True when nothing is left: all is committed, or the execution belongs to another owner.
        """
        self._dirty.pop(buffer.fence, None)
        if not buffer.standing.is_final:
            until = time.monotonic() + _LOOK
            while not buffer.hand.over and time.monotonic() < until:
                time.sleep(_PAUSE)  # another thread is committing
            try:
                self._commit_alone(buffer)
            except JournalUnavailable:
                return False
        return not buffer.queue or buffer.standing.is_final

    # -- committing -----------------------------------------------------------------------------------------

    def _commit_for(self, buffer: ExecutionBuffer, number: int) -> bool:
        """Commit until an execution's entries are committed, or cannot be; False if another thread is committing.

        :raises JournalUnavailable: a commit has failed, and they are not committed.
        """
        try:
            if buffer.company > 1:
                self._lead(buffer, number)
            if buffer.company == 1:
                self._commit_alone(buffer)
        except JournalUnavailable as error:
            if not buffer.has(number):
                raise self._broken(buffer, error.message) from error
        return buffer.standing.refused is not None or buffer.has(number)

    def _lead(self, waits: ExecutionBuffer | None = None, number: int = 0) -> None:
        """Commit dirty buffers, the oldest first, unless another thread does.

        :param waits: until its entries up to this number are committed, or cannot be; None: while something is due.
        """
        turn = Turn()
        led = False
        try:
            try:
                led = self._leading.take(turn)
                while led and (self._is_due() if waits is None else waits.lacks(number)):
                    pieces = self._seal(turn, oldest(list(self._dirty.values())))
                    if not pieces:
                        break
                    self._write(pieces)
                    if self._waiting:
                        self._waiting.wake(leader=False)
            finally:
                turn.over = True
        finally:
            # Twice, because an exception may interrupt the first one.
            turn.over = True
            if led and self._waiting:
                self._waiting.wake()

    def _commit_alone(self, buffer: ExecutionBuffer) -> None:
        """The same for one execution, so that others need not wait for it."""
        turn = Turn()
        try:
            try:
                pieces = self._seal(turn, [buffer])
                if pieces:
                    self._write(pieces)
            finally:
                turn.over = True
        finally:
            turn.over = True
            self._waiting.wake()

    def _seal(self, turn: Turn, buffers: Sequence[ExecutionBuffer]) -> list[_Piece]:
        """Take those executions that no other commit handles, and their batches that are to be committed."""
        pieces: list[_Piece] = []
        for buffer in buffers:
            with self._sealing:
                if not buffer.hand.over:
                    continue
                batches: Sequence[Batch] = () if buffer.closed else buffer.seal()
                if batches:
                    buffer.hand = turn
                else:
                    self._clean(buffer)
            for batch in batches:
                pieces.append((buffer, batch))  # noqa: PERF401  (nearly always one, of one execution)
        return pieces

    def _clean(self, buffer: ExecutionBuffer) -> None:
        """Take a buffer off the table, unless it has entries left."""
        self._dirty.pop(buffer.fence, None)
        if buffer.queue and not buffer.closed:
            self._soil(buffer)

    def _write(self, pieces: Sequence[_Piece]) -> None:
        """Commit batches; if the database refuses one, the others are committed without it.

        :raises JournalUnavailable: the database did not answer, or not as it should.
        """
        before = time.monotonic()
        reached("writer.before_commit")
        cancelled: set[Fence] = set()
        busy: set[Fence] = set()
        # Packed here, without a lock, so that appending threads need not wait.
        batches = []
        for _, batch in pieces:
            batches.append(packed(batch))
        try:
            lost = self._journal.append(batches, cancelled, busy)
        except NotStorable as error:
            self._find_refused(pieces, error)
            return
        except JournalUnavailable:
            for buffer in {buffer.fence: buffer for buffer, _ in pieces}.values():
                buffer.company = max(buffer.company // 2, 1)
            raise
        reached("writer.after_commit")
        self._answered = time.monotonic()
        with self._sealing:
            for buffer, batch in pieces:
                if lost and buffer.fence in lost:
                    buffer.standing.refuse(
                        LeaseLost(
                            "another owner took the execution over, or it was cancelled; nothing of this owner is "
                            "committed any more."
                        )
                    )
                elif busy and buffer.fence in busy:
                    buffer.company = 1
                else:
                    buffer.acknowledge(batch)
                    buffer.verified_at = before
                    buffer.company = COMPANY
                    buffer.cancelled = bool(cancelled) and buffer.fence in cancelled
                buffer.hand = NOBODY
                if not busy or buffer.fence not in busy:
                    self._clean(buffer)

    def _find_refused(self, pieces: Sequence[_Piece], error: NotStorable) -> None:
        """Halve until the refused entry is alone; none of these pieces is committed yet."""
        if len(pieces) > 1:
            middle = len(pieces) // 2
            self._write(pieces[:middle])
            # If the database refuses an execution's row, nothing else of it can be written.
            later = [(buffer, batch) for buffer, batch in pieces[middle:] if not buffer.unborn]
            if later:
                self._write(later)
            return
        [(buffer, batch)] = pieces
        with self._sealing:
            halves = buffer.halve(batch)
        for half in halves:
            if not buffer.unborn:
                self._write([(buffer, half)])
        if halves:
            return
        name = batch.entries[0].name if batch.entries else "its beginning"
        refusal = EntryRefused(f"the database does not take {name!r} into the execution's journal: {error}")
        buffer.standing.refuse(refusal)
        logger.error("an entry of execution %d cannot be stored: %s", buffer.fence.pk, error)
        with self._sealing:
            buffer.forget(batch)
            if batch.birth is not None:
                buffer.unborn = True
                buffer.queue.clear()
            buffer.hand = NOBODY
        self._clean(buffer)

    @staticmethod
    def _broken(buffer: ExecutionBuffer, reason: str) -> JournalUnavailable:
        error = JournalUnavailable(reason)
        buffer.standing.refuse(error)
        return error

    # -- entries that nobody waits for ---------------------------------------------------------------------

    def _due(self) -> float | None:
        """Seconds until dirty buffers must be committed; threads that wait often commit them sooner.

        :returns: None if none is dirty.
        """
        oldest = next(iter(list(self._dirty.values())), None)
        return None if oldest is None else oldest.dirty_since + self._flush_interval - time.monotonic()

    def _is_due(self) -> bool:
        left = self._due()
        return left is not None and left <= 0

    def _commit_due(self) -> bool:
        """Commit entries that nobody has waited for in time; False if another try makes no sense for a while."""
        try:
            self._lead()
            for buffer in list(self._dirty.values()):
                if buffer.company == 1:
                    self._commit_alone(buffer)
        except JournalUnavailable as error:
            # Buffered entries may wait: if the outage lasts, the body gets its error at the next acknowledged commit.
            logger.warning("buffered journal entries could not be committed yet: %s", error)
        except Exception:
            logger.exception("the journal's flush timer failed, and continues")
            return False
        return True
