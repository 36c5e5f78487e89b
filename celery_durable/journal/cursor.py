"""The cursor over a journal.

It belongs to one scope (the body, or one branch of a parallel scope) and reads it in segments, so that memory depends
on the size of a segment and not on the length of the journal.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from celery_durable.errors import JournalCorrupted
from celery_durable.store.records import EntryKind, Journaled

from .packing import unpack

__all__ = ["PACKS", "SEGMENT", "ReplayCursor", "read_whole"]

#: Entries per read.
SEGMENT: Final = 100
#: Rows per read if packs are expected: each may be a whole segment, and is held until its turn comes.
PACKS: Final = 4

#: Reads up to ``rows`` entries of one scope from a position on, in order.
Load = Callable[[int, int], Sequence[Journaled]]


#: Looking up a member of an enumeration is slow.
_CHECKPOINT: Final = int(EntryKind.CHECKPOINT)


def read_whole(load: Load, position: int, limit: int) -> tuple[Sequence[Journaled], int, bool]:
    """About ``limit`` rows from ``position`` on, never part of a position: more if a single position has more.

    :returns: the rows, where the next read begins, and whether these are the last rows.
    """
    while True:
        rows = load(position, limit)
        if len(rows) < limit:
            return rows, position, True
        last = rows[-1]
        if last.kind == _CHECKPOINT:
            # A pack is the last row of its position, and no other rows are at the positions that it covers.
            return rows, last.position + 1, False
        # The last position may have been cut in two: leave it to the next read.
        if rows[0].position != last.position:
            return [row for row in rows if row.position != last.position], last.position, False
        limit = max(limit * 2, SEGMENT)


class ReplayCursor:
    """Hands out the journal's entries by position, reading ahead one segment at a time.

    Positions may be taken out of order (coroutines do): entries that were read and not taken are kept. Safe to use from
    several threads.

    :param load: reads entries of this scope.
    :param empty: True if the scope is known to hold nothing: then nothing is read.
    :param long: True if it may hold more than a segment: most likely in packs, each of which may be a segment.
    :param unreadable: makes the exception for rows that cannot be read; None: the error itself is raised.
    :param first: gives all entries of this scope, if they were read already; otherwise None.
    """

    def __init__(
        self,
        load: Load,
        *,
        empty: bool,
        long: bool = False,
        first: Callable[[], Sequence[Journaled] | None] | None = None,
        segment: int = SEGMENT,
        unreadable: Callable[[JournalCorrupted], BaseException] | None = None,
    ) -> None:
        self._load = load
        self._first = first
        self._segment = segment
        self._unreadable = unreadable
        #: Rows of the next read.
        self._limit = PACKS if long else segment
        #: Rows that were read and not handed out, and where the next read begins.
        self._ahead: deque[Journaled] = deque()
        self._next = 0
        #: The last row of the scope has been read.
        self._ends = False
        self._groups: dict[int, list[Journaled]] = {}
        #: Everything below this position has been handed out, or waits to be taken.
        self._read_to = 0
        #: All rows of the scope have been read, and are handed out or wait to be taken.
        self.exhausted = empty
        self._lock = threading.Lock()

    def take(self, position: int) -> list[Journaled] | None:
        """The entries at ``position``, once; None when there are none."""
        rows = self._groups.pop(position, None)
        if rows is not None or self.exhausted or position < self._read_to:
            return rows
        self._read(position)
        return self._groups.pop(position, None)

    def has(self, position: int) -> bool:
        """Whether there are entries at ``position`` or beyond it."""
        if any(p >= position for p in self._groups):
            return True
        if self.exhausted:
            return False
        self._read(position)
        return any(p >= position for p in self._groups)

    def ready(self, position: int) -> bool:
        """True when :meth:`take` of ``position`` needs no database."""
        return self.exhausted or position < self._read_to

    def first_left(self, position: int) -> list[Journaled] | None:
        """The first entries at or beyond ``position``, without taking them."""
        if not self.has(position):
            return None
        return self._groups[min(p for p in self._groups if p >= position)]

    @property
    def holds(self) -> bool:
        """True while entries that were read have not been taken."""
        return bool(self._groups)

    def rest(self) -> Iterator[list[Journaled]]:
        """Take everything that is left, position by position."""
        while True:
            for position in sorted(self._groups):
                yield self._groups.pop(position)
            if self.exhausted:
                return
            self._read(self._read_to)

    def _read(self, position: int) -> None:
        try:
            with self._lock:
                while not self.exhausted and self._read_to <= position:
                    self._read_segment()
        except JournalCorrupted as error:
            if self._unreadable is None:
                raise
            raise self._unreadable(error) from error

    def _read_segment(self) -> None:
        """Hand out up to a segment of the rows that were read ahead; read more if there are none."""
        ahead = self._ahead
        if not ahead:
            self._read_ahead()
        steps: list[Journaled] = []
        number = 0
        while ahead:
            row = ahead.popleft()
            number += 1
            if row.kind != _CHECKPOINT:
                steps.append(row)
                continue
            steps += unpack(row)
            # As many rows as make a segment, if the next ones are like these.
            self._limit = max(PACKS, self._segment * number // len(steps))
            if len(steps) * 2 > self._segment:
                break  # a pack is the last row of its position, so no position is cut in two here
        groups = self._groups
        end = self._read_to
        for row in steps:
            position = row.position
            if position >= end:
                # Rows come in the order of positions, and nearly every position has one.
                groups[position] = [row]
                end = position + 1
            else:
                groups.setdefault(position, []).append(row)
        self._read_to = end
        self.exhausted = self._ends and not ahead

    def _read_ahead(self) -> None:
        first, self._first = self._first, None
        known = None if first is None else first()
        if known is not None:
            self._ahead.extend(known)
            self._ends = True
            return
        rows, self._next, self._ends = read_whole(self._load, self._next, self._limit)
        self._ahead.extend(rows)
        # Read more next time, in case these are no packs; but not many more at once, because packs may follow.
        self._limit = min(self._limit * 2, self._segment)
