"""Retention: prunes what has ended, slowly and in the background, next to recovery.

One service of a namespace at a time does it, and its progress is stored, so that a thousand workers, and their
restarts, cost no more than one. It needs no index: primary keys grow with time, so the executions that reach an age
just now are next to each other. For each age at which something becomes due, a *front* walks up the table and looks at
each execution once, when it reaches that age. What a front misses (an execution that ended long after it began, a key
made by a wrong clock, a pruning that a crash interrupted) is found by a full pass, which is rare.

Limits by number and size are measured from the other end: from the latest execution back to where a limit is reached.
What is beyond it is due.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from celery_durable.errors import DurableError
from celery_durable.store.records import State
from celery_durable.store.retention import RetentionStore, Right, RightLost
from celery_durable.store.tables import pk_at

from .pruner import CHUNK, Measure, Pruner, Scales
from .rules import Rules

__all__ = ["Upkeep"]

logger = logging.getLogger(__name__)

#: How long one turn works, in seconds; then it rests three times as long as it worked.
_BUDGET: Final = 0.05
_REST: Final = 3
#: How often it is measured what lies beyond a limit, in milliseconds.
_MEASURE_INTERVAL: Final = 300_000
#: How long the right of a service lasts at least that does not say a word, in milliseconds.
_HOLD: Final = 30_000


@dataclass
class _Progress:
    """What the next service needs to continue."""

    #: Age → how far its front has come.
    fronts: dict[int, int] = field(default_factory=dict)
    #: How far the full pass has come; None: none is under way.
    full: int | None = None
    #: When the latest one began; 0: none did.
    full_began: int = 0
    measure: Measure | None = None
    measure_began: int = 0
    #: By state: executions up to this one are beyond a limit.
    over: dict[State, int] = field(default_factory=dict)
    #: How far those have been removed.
    over_cursor: int = 0

    @classmethod
    def load(cls, text: str) -> _Progress:
        """Whatever is not there, or is of another version, starts again."""
        try:
            given = json.loads(text)
            measure = given.get("measure")
            return cls(
                fronts=_numbered(given.get("fronts", {})),
                full=given.get("full"),
                full_began=given.get("full_began", 0),
                measure=measure
                and Measure(measure["cursor"], _numbered(measure["found"]), _numbered(measure["beyond"])),
                measure_began=given.get("measure_began", 0),
                over={State(state): pk for state, pk in given.get("over", {}).items()},
                over_cursor=given.get("over_cursor", 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError, DurableError):
            return cls()

    def dump(self) -> str:
        return json.dumps(
            {
                "fronts": self.fronts,
                "full": self.full,
                "full_began": self.full_began,
                "measure": self.measure and vars(self.measure),
                "measure_began": self.measure_began,
                "over": {state.value: pk for state, pk in self.over.items()},
                "over_cursor": self.over_cursor,
            },
            separators=(",", ":"),
        )


def _numbered(values: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in values.items()}


class Upkeep:
    """Looks after the ended executions of one namespace.

    :param owner: unique among all services.
    :param rhythm: how often it looks whether there is anything to do, in seconds.
    :param rest: called before each pause of that length.
    """

    def __init__(
        self,
        store: RetentionStore,
        rules: Rules,
        owner: str,
        *,
        rhythm: float,
        rest: Callable[[], None] = lambda: None,
        chunk: int = CHUNK,
        measure_interval: int = _MEASURE_INTERVAL,
    ) -> None:
        self._store = store
        self._rules = rules
        self._owner = owner
        self._rhythm = rhythm
        self._rest = rest
        self._hold = max(_HOLD, int(3000 * rhythm))
        self._chunk = chunk
        self._measure_interval = measure_interval
        self._progress = _Progress()
        self._now = 0
        self._pruner = Pruner(store, rules, self._right, chunk=chunk)
        self._scales = Scales(store)
        #: Which of the jobs is next: each gets its turn.
        self._next = 0
        self._stopping = False

    def stop(self) -> None:
        """Leave :meth:`run` soon."""
        self._stopping = True

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Work until :meth:`stop`."""
        while not self._stopping:
            wait = self._rhythm
            try:
                wait = self.turn()
            except RightLost:
                logger.debug("another service handles the retention now")
            except Exception as error:
                # Whatever it is: it must not end for ever what nothing else does.
                expected = isinstance(error, DurableError)
                logger.warning("retention failed, and is tried again: %s", error, exc_info=not expected)
            sleep(wait)

    def turn(self) -> float:
        """Work for a moment, if it is for this service to do.

        :returns: seconds until the next turn.
        :raises RightLost: another service does it now.
        """
        held = self._store.take(self._owner, self._hold)
        if held is None:
            self._rest()
            return self._rhythm
        self._progress, self._now = _Progress.load(held.progress), held.now
        begin = time.monotonic()
        while more := self._work():
            if time.monotonic() - begin > _BUDGET:
                break
        if self._progress.dump() != held.progress:
            self._store.keep(self._right())
        spent = time.monotonic() - begin
        if more:
            return spent * _REST
        self._report()
        self._rest()
        return self._rhythm

    def _right(self) -> Right:
        return Right(self._owner, self._hold, self._progress.dump())

    def _report(self) -> None:
        pruner = self._pruner
        if pruner.pruned or pruner.forgotten:
            count = sum(pruner.pruned.values())
            logger.info("%d execution(s) were pruned, %d tombstone(s) removed", count, pruner.forgotten)
        pruner.pruned.clear()
        pruner.forgotten = 0

    # -- jobs -----------------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """Do the next piece of any job.

        :returns: False when there is nothing to do.
        """
        ages = self._rules.fronts()
        self._progress.fronts = {age: self._progress.fronts.get(age, 0) for age in ages}
        jobs: list[Callable[[], bool]] = [
            *(partial(self._front, age) for age in ages),
            self._beyond_limits,
            self._full_pass,
            self._measure,
        ]
        for number in range(len(jobs)):
            if jobs[(self._next + number) % len(jobs)]():
                self._next = (self._next + number + 1) % len(jobs)
                return True
        return False

    def _front(self, age: int) -> bool:
        fronts = self._progress.fronts

        def arrive(pk: int) -> None:
            fronts[age] = pk

        return self._walk(fronts[age], pk_at(self._now - age), arrive)

    def _beyond_limits(self) -> bool:
        def arrive(pk: int) -> None:
            self._progress.over_cursor = pk

        return self._walk(self._progress.over_cursor, max(self._progress.over.values(), default=0), arrive)

    def _full_pass(self) -> bool:
        progress = self._progress
        if progress.full is None:
            if not progress.full_began:
                # The fronts begin at the very beginning: the first one is made by them.
                progress.full_began = self._now
            if self._now - progress.full_began < self._rules.pass_interval:
                return False
            progress.full, progress.full_began = 0, self._now
        until = max([pk_at(self._now - age) for age in self._rules.fronts()] + list(progress.over.values()), default=0)

        def arrive(pk: int) -> None:
            progress.full = pk if pk < until else None

        return self._walk(progress.full, until, arrive, thorough=True)

    def _walk(self, after: int, until: int, arrive: Callable[[int], None], *, thorough: bool = False) -> bool:
        if after >= until:
            return False
        return self._pruner.walk(after, until, self._progress.over, arrive, thorough=thorough)

    # -- limits ---------------------------------------------------------------------------------------------

    def _measure(self) -> bool:
        """Find out from where on executions are beyond a limit."""
        progress, limits = self._progress, self._rules.limits
        if not limits:
            progress.over = {}
            return False
        if progress.measure is None:
            if progress.measure_began and self._now - progress.measure_began < self._measure_interval:
                return False
            progress.measure, progress.measure_began = Measure(), self._now
        if not progress.measure.advance(self._store, limits, self._scales, self._chunk):
            over = progress.measure.over(limits)
            # What lay beyond before is removed already.
            progress.over_cursor = min((progress.over.get(state, 0) for state in over), default=0)
            progress.over, progress.measure = over, None
        return True
