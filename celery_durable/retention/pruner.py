"""Walks over executions by age and removes what the rules allow, a little at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from celery_durable.errors import JournalUnavailable
from celery_durable.store.records import State
from celery_durable.store.retention import Looked, RetentionStore, Right

from .rules import Fate, Limit, Rules

__all__ = ["CHUNK", "Measure", "Pruner", "Scales"]

T = TypeVar("T")

#: Executions that are looked at with one statement.
CHUNK: Final = 1000
#: Larger than every key.
_ALL: Final = (1 << 63) - 1
#: Journal entries that one transaction removes, about: at first, at least and at most.
_FIRST_LOAD, _LEAST_LOAD, _LARGEST_LOAD = 500, 10, 4000
#: How long a transaction should take, in seconds: then the next one is made larger, or smaller.
_QUICK, _SLOW = 0.04, 0.12


class Pruner:
    """Prunes and forgets.

    :param right: made for each transaction, where the work is shared with others; None where it is not.
    :param scales: to find out how much is removed.
    :param dry: only count.
    """

    def __init__(
        self,
        store: RetentionStore,
        rules: Rules,
        right: Callable[[], Right | None] = lambda: None,
        *,
        scales: Scales | None = None,
        dry: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        self._store = store
        self._rules = rules
        self._right = right
        self._scales = scales
        self._dry = dry
        self._chunk = chunk
        self._load = _LARGEST_LOAD if dry else _FIRST_LOAD
        #: Too long for one transaction: it is under way.
        self._slicing: list[Looked] = []
        #: How many executions were pruned, by their state.
        self.pruned: Counter[State] = Counter()
        #: About how many bytes that made free.
        self.freed = 0
        #: How many tombstones were removed.
        self.forgotten = 0

    def walk(
        self,
        after: int,
        until: int,
        over: Mapping[State, int],
        arrive: Callable[[int], None],
        *,
        thorough: bool = False,
    ) -> bool:
        """Look at the next executions, and prune or forget what is due, but no more than what one transaction should.

        :param after: how far an earlier walk has come.
        :param over: see :meth:`Rules.verdict`.
        :param arrive: is called with how far this one comes, before its last transaction: what it gets is true as soon
            as that is committed.
        :param thorough: finish what others began to prune, too.
        :returns: False when there was nothing to look at.
        """
        if self._slicing:
            self._slice()
            return True
        rows = self._store.look(after, until, self._chunk)
        if not rows:
            arrive(until)
            return False
        prune, forget, reached = self._select(rows, over)
        if thorough and not self._dry:
            self._find_leftovers(rows)
        if reached == rows[-1].pk and len(rows) < self._chunk:
            reached = until
        if forget:
            self._forget(forget)
        arrive(reached)
        if prune:
            self._prune(prune)
        return True

    def _select(self, rows: Sequence[Looked], over: Mapping[State, int]) -> tuple[list[Looked], list[Looked], int]:
        """What to prune and what to forget now, and the last execution that is dealt with by that."""
        prune: list[Looked] = []
        forget: list[Looked] = []
        load = 0
        reached = rows[0].pk - 1
        for row in rows:
            verdict = self._rules.verdict(row, over) if row.ours else Fate.KEEP
            if verdict is not Fate.KEEP:
                load += _load(row) if verdict is Fate.PRUNE else 1
                if load > self._load and (prune or forget):
                    break
                (prune if verdict is Fate.PRUNE else forget).append(row)
            reached = row.pk
        return prune, forget, reached

    def _forget(self, rows: list[Looked]) -> None:
        keys = self._rules.keys
        if self._dry:
            self.forgotten += self._store.forgettable(rows, keys)
        else:
            self.forgotten += self._timed(lambda: self._store.forget(rows, keys, self._right()))

    def _prune(self, rows: list[Looked]) -> None:
        sizes = self._scales.weigh(rows) if self._scales is not None else [0] * len(rows)
        [first, *others] = rows
        if self._dry:
            done = {row.pk for row in rows}
        elif not others and (_load(first) > self._load or first.generation > 1):
            self._slicing.append(first)
            self._slice()
            done = {first.pk}
        else:
            done = set(self._timed(lambda: self._store.prune(rows, self._right())))
        self.pruned.update(row.state for row in rows if row.pk in done)
        self.freed += sum(size for row, size in zip(rows, sizes, strict=True) if row.pk in done)

    def _find_leftovers(self, rows: Sequence[Looked]) -> None:
        tombstones = {row.pk: row for row in rows if row.ours and row.pruned is not None}
        if tombstones:
            self._slicing += (tombstones[pk] for pk in sorted(self._store.leftovers(tombstones)))

    def _slice(self) -> None:
        row = self._slicing[0]
        if self._timed(lambda: self._store.prune_slice(row, self._load, self._right())):
            self._slicing.pop(0)

    def _timed(self, transaction: Callable[[], T]) -> T:
        """Run a transaction, and make the next ones larger or smaller."""
        begin = time.monotonic()
        try:
            done = transaction()
        except JournalUnavailable:
            self._load = max(self._load // 4, _LEAST_LOAD)
            raise
        took = time.monotonic() - begin
        if took > _SLOW:
            self._load = max(self._load // 2, _LEAST_LOAD)
        elif took < _QUICK:
            self._load = min(self._load * 2, _LARGEST_LOAD)
        return done


def _load(row: Looked) -> int:
    """About how many rows it has; a guarded step has two entries."""
    return 3 + 2 * row.steps


class Scales:
    """Estimates sizes: some executions are weighed, the others are judged by their number of steps."""

    #: The most steps of an execution that is weighed, and the most executions and steps at a time.
    _WEIGHABLE, _EXECUTIONS, _STEPS = 200, 20, 1000

    def __init__(self, store: RetentionStore) -> None:
        self._store = store
        #: Bytes, until something has been weighed.
        self._per_execution = 1300.0
        self._per_step = 150.0

    def weigh(self, rows: Sequence[Looked]) -> list[int]:
        """About how many bytes each of these executions takes in the database."""
        candidates = [row for row in rows if row.steps <= self._WEIGHABLE]
        stride = max(1, len(candidates) // self._EXECUTIONS)
        sample, steps = [], 0
        for row in candidates[::stride]:
            if steps + row.steps > self._STEPS:
                break
            sample.append(row.pk)
            steps += row.steps
        if sample:
            rest, entries = self._store.weigh(sample)
            self._per_execution = rest / len(sample)
            if steps:
                self._per_step = entries / steps
        return [int(self._per_execution + row.steps * self._per_step) for row in rows]


@dataclass
class Measure:
    """Finds out from where on executions are beyond a limit: from the latest one back."""

    cursor: int = _ALL
    #: Limit → executions, or bytes, so far.
    found: dict[int, int] = field(default_factory=dict)
    #: Limit → the first execution beyond it.
    beyond: dict[int, int] = field(default_factory=dict)

    def advance(self, store: RetentionStore, limits: Sequence[Limit], scales: Scales, chunk: int = CHUNK) -> bool:
        """Look at the next executions.

        :returns: False when it is known where each limit is.
        """
        rows = store.look_back(self.cursor, chunk)
        self._count([row for row in rows if row.ours and row.settled and row.pruned is None], limits, scales)
        if len(rows) < chunk or len(self.beyond) == len(limits):
            return False
        self.cursor = rows[-1].pk
        return True

    def _count(self, rows: list[Looked], limits: Sequence[Limit], scales: Scales) -> None:
        sizes = scales.weigh(rows) if any(limit.in_bytes for limit in limits) else [0] * len(rows)
        for row, size in zip(rows, sizes, strict=True):
            for number, limit in enumerate(limits):
                if number in self.beyond or row.state not in limit.states:
                    continue
                found = self.found[number] = self.found.get(number, 0) + (size if limit.in_bytes else 1)
                if found > limit.most:
                    self.beyond[number] = row.pk

    def over(self, limits: Sequence[Limit]) -> dict[State, int]:
        """By state: executions up to this one are beyond a limit."""
        over: dict[State, int] = {}
        for number, limit in enumerate(limits):
            for state in limit.states:
                over[state] = max(over.get(state, 0), self.beyond.get(number, 0))
        return over
