"""The cursor over a journal, and what its entries say.

A cursor belongs to one scope (the body, or one branch of a parallel scope) and reads it in segments, so that
memory depends on the segment and not on the length of the journal.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .effects import Effect
from .errors import JournalCorrupted
from .packing import unpack
from .store.records import EffectCode, EntryKind, Journaled, StoredPayload, place_of

__all__ = [
    "CODE_OF_EFFECT",
    "EFFECT_OF_CODE",
    "PACKS",
    "SEGMENT",
    "Past",
    "Recorded",
    "ReplayCursor",
    "effect_of",
    "fold",
    "is_scope",
    "is_wait",
    "only_audits",
    "read_whole",
]

#: Entries per read.
SEGMENT: Final = 100
#: What the effects of steps are stored as.
EFFECT_OF_CODE: Final = {
    EffectCode.IDEMPOTENT: Effect.IDEMPOTENT,
    EffectCode.AT_LEAST_ONCE: Effect.AT_LEAST_ONCE,
    EffectCode.EXACTLY_ONCE_GUARDED: Effect.EXACTLY_ONCE_GUARDED,
    EffectCode.TRANSACTIONAL: Effect.TRANSACTIONAL,
}
CODE_OF_EFFECT: Final = {effect: code for code, effect in EFFECT_OF_CODE.items()}
#: Rows per read where packs are expected: each may be a segment, and is held as it was read until its turn comes.
PACKS: Final = 4

#: Reads up to ``rows`` entries of one scope from a position on, in order.
Load = Callable[[int, int], Sequence[Journaled]]


class Past(enum.Enum):
    """What the entries of a position come to."""

    #: An intent without a result: nobody knows.
    OPEN = "open"
    #: Tries failed in a known way, or an operator said "run it": the step may be tried.
    TRY = "try"
    #: Ambiguous, and left to an operator who has not decided yet.
    UNDECIDED = "undecided"
    DONE = "done"
    ERROR = "error"
    SKIPPED = "skipped"
    LOST = "lost"
    SCOPE = "scope"
    #: A wait whose end nobody has seen yet, or a timer.
    WAITING = "waiting"


@dataclass(frozen=True)
class Recorded:
    """The entries of one position, folded."""

    past: Past
    name: str
    effect: Effect | None
    fingerprint: bytes | None
    key: bytes | None
    #: Tries made so far.
    attempts: int
    #: Number of the next entry at this position.
    next_entry: int
    #: The deciding entry's payload.
    payload: StoredPayload | None
    #: ms since the epoch, UTC: when the deciding entry was written.
    at: int


_MEANING: Final = {
    EntryKind.INTENT: Past.OPEN,
    EntryKind.ATTEMPT: Past.TRY,
    EntryKind.RUN_AGAIN: Past.TRY,
    EntryKind.AUDIT: Past.UNDECIDED,
    EntryKind.RESULT: Past.DONE,
    EntryKind.ERROR: Past.ERROR,
    EntryKind.SKIPPED: Past.SKIPPED,
    EntryKind.LOST: Past.LOST,
    EntryKind.SCOPE: Past.SCOPE,
    EntryKind.SCOPE_END: Past.SCOPE,
    EntryKind.TIMER: Past.WAITING,
    EntryKind.WAIT: Past.WAITING,
    EntryKind.PROMISE: Past.DONE,
    EntryKind.CALL: Past.WAITING,
}

#: Nothing else says what became of these steps; a value of None has a payload too.
_TELLING: Final = (Past.DONE, Past.ERROR, Past.SKIPPED)


def is_scope(rows: Sequence[Journaled]) -> bool:
    """True when a position holds a parallel scope and no step."""
    return rows[0].kind in (EntryKind.SCOPE, EntryKind.SCOPE_END)


def is_wait(rows: Sequence[Journaled]) -> bool:
    """True when a position holds a sleep, a timer, a promise, a wait or a call."""
    return rows[0].kind in (EntryKind.TIMER, EntryKind.PROMISE, EntryKind.WAIT, EntryKind.CALL)


def only_audits(rows: Sequence[Journaled]) -> bool:
    """True when a guarded step stopped before its intent: a conflict, or the doubt of another step.

    Such a position says nothing about the effect.
    """
    return all(row.kind == EntryKind.AUDIT for row in rows)


def fold(rows: Sequence[Journaled], *, payloads: bool = True) -> Recorded:
    """What the entries of one position say together.

    :param payloads: False when they were left out of the read.
    :raises JournalCorrupted: when they contradict each other.
    """
    first, last = rows[0], rows[-1]
    try:
        past = _MEANING[EntryKind(last.kind)]
    except (ValueError, KeyError):
        raise _unknown(last) from None
    effect = effect_of(first)
    for row in rows:
        if row.name != first.name or row.fingerprint != first.fingerprint or row.effect != first.effect:
            raise JournalCorrupted(
                f"the entries of {_where(first)} name different steps ({first.name!r} and {row.name!r}). A row was "
                "changed from outside; nothing was run."
            )
    payload = None if last.codec is None or last.payload is None else StoredPayload(last.codec, last.payload)
    if payloads and payload is None and past in _TELLING:
        raise JournalCorrupted(
            f"{_where(first)} has the end of step {first.name!r} without its payload. The row was changed from "
            "outside; restore it from a backup. Nothing was run."
        )
    return Recorded(
        past=past,
        name=first.name,
        effect=effect,
        fingerprint=first.fingerprint,
        key=next((row.key for row in rows if row.key is not None), None),
        attempts=max(row.attempt for row in rows),
        next_entry=last.entry + 1,
        payload=payload,
        at=last.at,
    )


def effect_of(row: Journaled) -> Effect | None:
    """The effect of an entry's step; None for what is no step's.

    :raises JournalCorrupted: for one that this version does not know.
    """
    try:
        return None if row.effect is None else EFFECT_OF_CODE[EffectCode(row.effect)]
    except ValueError:
        raise _unknown(row) from None


def _unknown(row: Journaled) -> JournalCorrupted:
    return JournalCorrupted(
        f"{_where(row)} has an entry of kind {row.kind} and effect {row.effect}, which this version does not know. "
        "The journal was written by a newer version, or its row was changed from outside."
    )


def _where(row: Journaled) -> str:
    return f"position {place_of(row.scope, row.position)} of generation {row.generation}"


#: A member of an enumeration is slow to get at.
_CHECKPOINT: Final = int(EntryKind.CHECKPOINT)


def read_whole(load: Load, position: int, limit: int) -> tuple[Sequence[Journaled], int, bool]:
    """About ``limit`` rows from ``position`` on, of whole positions: more where a single one has more.

    :returns: the rows, where the next read begins, and whether there is nothing more.
    """
    while True:
        rows = load(position, limit)
        if len(rows) < limit:
            return rows, position, True
        last = rows[-1]
        if last.kind == _CHECKPOINT:
            # It is the last of its position, and there is nothing between it and the end of what it holds.
            return rows, last.position + 1, False
        # The last position may have been cut in two: leave it to the next read.
        if rows[0].position != last.position:
            return [row for row in rows if row.position != last.position], last.position, False
        limit = max(limit * 2, SEGMENT)


class ReplayCursor:
    """Hands out the journal's entries by position, reading ahead one segment at a time.

    Positions may be taken out of order (coroutines do): what was read and not taken is kept. Safe to use from
    several threads.

    :param load: reads entries of this scope.
    :param empty: True where the scope is known to hold nothing: then nothing is read.
    :param long: True where it may hold more than a segment: most likely in packs, each of which may be a segment.
    """

    def __init__(
        self,
        load: Load,
        *,
        empty: bool,
        long: bool = False,
        segment: int = SEGMENT,
    ) -> None:
        self._load = load
        self._segment = segment
        #: Rows of the next read.
        self._limit = PACKS if long else segment
        #: Rows that were read and not handed out, and where the next read begins.
        self._ahead: deque[Journaled] = deque()
        self._next = 0
        #: There is nothing beyond what was read.
        self._ends = False
        self._groups: dict[int, list[Journaled]] = {}
        #: Everything below this position has been handed out, or waits to be taken.
        self._read_to = 0
        #: Everything that there is has been read.
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
        """The first entries at or beyond ``position``; they stay."""
        if not self.has(position):
            return None
        return self._groups[min(p for p in self._groups if p >= position)]

    def _read(self, position: int) -> None:
        with self._lock:
            while not self.exhausted and self._read_to <= position:
                self._read_segment()

    def _read_segment(self) -> None:
        """Hand out what was read ahead, as far as a segment goes; rows are read where there is nothing more."""
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
            # As many rows as make a segment, if those that come are like these.
            self._limit = max(PACKS, self._segment * number // len(steps))
            if len(steps) * 2 > self._segment:
                break  # a pack is the last of its position, so that none is cut in two here
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
        rows, self._next, self._ends = read_whole(self._load, self._next, self._limit)
        self._ahead.extend(rows)
        # More, if these turn out to be no packs; not many more at once, for packs may follow.
        self._limit = min(self._limit * 2, self._segment)
