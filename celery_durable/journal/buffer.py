"""What one execution has appended to its journal, and how much of it is committed.

Until an entry is known to be committed, it is in this queue and nowhere else: first by itself, then in a batch that was
sent in a commit. Each change between these states is a single instruction, so the queue always shows what is left to be
done, even if an exception is raised in the middle of a commit:

* batches at its front were sent to the database: they may or may not be committed (**limbo**). Such a batch is sent
  **again** as it is (``Batch.again``), never in another form, because it is recognised by its first row;
* entries behind them have not been sent.

An execution is **born** once its row is known to be in the database. Until then its first batch inserts the row too.
"""

from __future__ import annotations

from typing import Final

from celery_durable.common.turns import Turn
from celery_durable.store.records import Batch, Birth, Entry, Fence

from .standing import Standing

__all__ = ["BATCH_BYTES", "BATCH_ENTRIES", "COMMIT_BYTES", "COMPANY", "NOBODY", "ExecutionBuffer", "oldest"]

#: The most that a batch holds, unless a single entry is larger: payloads in bytes, and entries.
BATCH_BYTES: Final = 1 << 20
#: The most that one commit takes, in bytes of payloads.
COMMIT_BYTES: Final = 2 * BATCH_BYTES
BATCH_ENTRIES: Final = 1000
#: The most executions that share a commit.
COMPANY: Final = 200

#: Whether an entry finishes a step, and the entry.
Appended = tuple[bool, Entry]

#: The turn of no commit: nothing is being committed.
NOBODY: Final = Turn(over=True)


class ExecutionBuffer:
    """What one execution has appended and not yet committed."""

    __slots__ = (
        "birth",
        "born",
        "bytes",
        "cancelled",
        "closed",
        "committed",
        "company",
        "dirty_since",
        "fence",
        "generation",
        "hand",
        "queue",
        "standing",
        "unborn",
        "verified_at",
    )

    def __init__(self, fence: Fence, generation: int, verified_at: float, birth: Birth | None = None) -> None:
        self.fence = fence
        self.generation = generation
        #: Whether anything may be appended, and the body may continue.
        self.standing = Standing()
        #: Batches that were sent to the database, then entries that were not.
        self.queue: list[Batch | Appended] = []
        #: The number of the last entry that is known to be committed.
        self.committed = 0
        #: Size of the queue's entries, roughly: threads that append at the same time may lose a count.
        self.bytes = 0
        #: The commit that handles this execution, until that is over.
        self.hand = NOBODY
        #: How many executions may share a commit with this one. Fewer after failed commits: one of the executions may
        #: be the reason.
        self.company = COMPANY
        #: Written with the first batch, if there is no row yet.
        self.birth = birth
        #: The row is known to be in the database.
        self.born = birth is None
        #: The database refuses the row: nothing else can be written either.
        self.unborn = False
        #: time.monotonic() of the first append that is not committed yet.
        self.dirty_since = 0.0
        #: Its cancellation was requested; its entries are still committed.
        self.cancelled = False
        #: The entries that are left are committed together with the end of the run.
        self.closed = False
        #: time.monotonic() just before the latest transaction that verified the lease.
        self.verified_at = verified_at

    def has(self, number: int) -> bool:
        """Whether everything up to an entry is known to be committed, and the execution's row."""
        return self.committed >= number and self.born

    def lacks(self, number: int) -> bool:
        """Whether an entry still needs a commit, and that one may be shared with other executions."""
        return not (self.committed >= number and self.born) and self.standing.refused is None and self.company > 1

    # -- only for the holder of the writer's sealing lock -----------------------------------------------------

    def told(self) -> int:
        """How many batches at the front of the queue were sent to the database."""
        number = 0
        for item in self.queue:
            if type(item) is not Batch:
                break
            number += 1
        return number

    @property
    def last(self) -> int:
        """The number of the last entry that was appended; entries are numbered in the order of the queue."""
        queue = self.queue
        if not queue or type(queue[0]) is not Batch:
            return self.committed + len(queue)
        told = self.told()
        return self._number(told) + len(queue) - told

    def _number(self, told: int) -> int:
        """The number of the last entry in the first batches."""
        return self.queue[told - 1].last if told else self.committed  # type: ignore[union-attr]

    def seal(self) -> list[Batch]:
        """Make batches of all that is appended.

        :returns: all batches of the queue, those of unknown fate first.
        """
        queue = self.queue
        told = self.told() if queue and type(queue[0]) is Batch else 0
        # Other threads may append at this moment, behind these.
        items: list[Appended] = queue[told:]  # type: ignore[assignment]
        fresh: list[Batch] = []
        if items or not (told or self.born):
            number = self._number(told) if told else self.committed
            if self.bytes <= BATCH_BYTES and len(items) <= BATCH_ENTRIES:
                fresh = [self._batch(items, told, number)]
            else:
                fresh = self._batches(items, told, number)
            queue[told : told + len(items)] = fresh
            self.bytes = 0
        if told:
            return [batch._replace(again=True) for batch in queue[:told]] + fresh  # type: ignore[union-attr]
        return fresh

    def take(self) -> Batch:
        """Make one batch of all that is appended; only if no earlier batch is left."""
        items: list[Appended] = self.queue[:]  # type: ignore[assignment]
        batch = self._batch(items, 0, self.committed)
        self.queue[: len(items)] = [batch] if items or batch.birth else []
        self.bytes = 0
        return batch

    def _batches(self, items: list[Appended], told: int, number: int) -> list[Batch]:
        made: list[Batch] = []
        begin = size = 0
        for place, item in enumerate(items):
            payload = item[1].payload
            more = 0 if payload is None else len(payload.data)
            if place > begin and (size + more > BATCH_BYTES or place - begin >= BATCH_ENTRIES):
                made.append(self._batch(items[begin:place], told + len(made), number + begin))
                begin, size = place, 0
            size += more
        made.append(self._batch(items[begin:], told + len(made), number + begin))
        return made

    def _batch(self, items: list[Appended], told: int, number: int) -> Batch:
        birth = None if told or self.born else self.birth
        if not items:
            return Batch(self.fence, self.generation, (), 0, False, birth, number)
        if len(items) == 1:
            # A fast path for the two commits of a guarded step, which hold one entry each.
            [(finishes, entry)] = items
            return Batch(self.fence, self.generation, (entry,), 1 if finishes else 0, False, birth, number + 1)
        finished, entries = zip(*items, strict=True)
        return Batch(self.fence, self.generation, entries, sum(finished), False, birth, number + len(items))

    def halve(self, batch: Batch) -> list[Batch]:
        """Split a batch that the database has refused as a whole, unless it holds a single thing."""
        middle = len(batch.entries) // 2
        if not middle and not (batch.birth is not None and batch.entries):
            return []
        later = batch._replace(entries=batch.entries[middle:], birth=None)
        # The count of steps is for people and for reading ahead: it need not be divided.
        first = batch._replace(entries=batch.entries[:middle], steps=0, last=batch.last - len(later.entries))
        for place, item in enumerate(self.queue):
            if isinstance(item, Batch) and item.last == batch.last:
                self.queue[place : place + 1] = [first, later]
                return [first, later]
        return []

    def acknowledge(self, batch: Batch) -> None:
        """Note that a batch is committed."""
        if batch.last > self.committed:
            self.committed = batch.last
        self.born = True
        self.forget(batch)

    def forget(self, batch: Batch) -> None:
        """Take a batch out of the queue, if it is the first one."""
        queue = self.queue
        # Nearly always it is this very object, and comparing identity is cheaper.
        if queue and (queue[0] is batch or (type(queue[0]) is Batch and queue[0].last == batch.last)):
            del queue[0]


def oldest(everyone: list[ExecutionBuffer]) -> list[ExecutionBuffer]:
    """Executions that share the next commit.

    :param everyone: executions with something to commit; the one that has waited longest comes first.
    """
    if len(everyone) == 1 and everyone[0].company > 1:
        return everyone
    chosen: list[ExecutionBuffer] = []
    most, size = COMPANY, 0
    for buffer in everyone:
        if buffer.company == 1:
            continue
        if buffer.company < most:
            most = buffer.company
        if len(chosen) >= most or size > COMMIT_BYTES:
            break
        chosen.append(buffer)
        size += buffer.bytes
    return chosen
