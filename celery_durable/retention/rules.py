"""What may be forgotten, and when: the settings ``durable_retention...`` as rules."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from celery_durable.settings import Settings
from celery_durable.store.records import FINAL_STATES, State
from celery_durable.store.retention import Looked

__all__ = ["Fate", "Limit", "Rules"]

#: A front keeps so far behind an age, for an execution is older than its end: a seventh of the age, and at most this,
#: in milliseconds. What took longer is found by the next full pass.
_LONGEST_LAG: Final = 3_600_000
#: Shortest and longest time between two full passes, in milliseconds; a seventh of the shortest age between them.
_SHORTEST_PASS, _LONGEST_PASS = 10_000, 86_400_000
#: More would be for ever, and no number that a database can compute with, in seconds.
_CENTURY: Final = 3_155_760_000


class Fate(enum.Enum):
    """What is to become of an execution."""

    KEEP = "keep"
    #: Its journal and payloads go; its row stays as a tombstone.
    PRUNE = "prune"
    #: The tombstone goes too.
    FORGET = "forget"


class Limit(NamedTuple):
    """How much is kept of executions in these states, the latest first."""

    states: frozenset[State]
    most: int
    #: Bytes, or else executions.
    in_bytes: bool


@dataclass(frozen=True)
class Rules:
    """What is kept; times in milliseconds."""

    #: How long after their end executions are kept; states that are not there: for ever.
    ages: Mapping[State, int]
    limits: tuple[Limit, ...] = ()
    #: How long a tombstone stays after pruning; None: for ever.
    tombstone: int | None = None
    #: How long a ``key=`` is remembered after the end of its execution; None: for ever.
    keys: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that an application has set."""
        return cls(
            ages={State(state): _ms(age) for state, age in (settings.retention or {}).items()},
            limits=(*_limits(settings.retention_count, False), *_limits(settings.retention_bytes, True)),
            tombstone=None if settings.tombstone_ttl is None else _ms(settings.tombstone_ttl),
            keys=None if settings.key_retention is None else _ms(settings.key_retention),
        )

    @property
    def active(self) -> bool:
        """False where nothing is ever pruned by itself."""
        return bool(self.ages or self.limits)

    def verdict(self, row: Looked, over: Mapping[State, int]) -> Fate:
        """What is to become of an execution.

        :param over: of executions in a state, those with a smaller or equal key are beyond a limit.
        """
        if row.pruned is not None:
            forgotten = self.tombstone is not None and row.pruned >= self.tombstone
            return Fate.FORGET if forgotten else Fate.KEEP
        if not row.settled:
            return Fate.KEEP
        age = self.ages.get(row.state)
        expired = age is not None and row.idle >= age
        return Fate.PRUNE if expired or row.pk <= over.get(row.state, -1) else Fate.KEEP

    def fronts(self) -> list[int]:
        """Ages at which something becomes due for most executions: so old, something can be done about them.

        A walk over the whole table finds the others; but it need not be made for every single one.
        """
        found = set()
        for age in self.ages.values():
            pruned = age + _lag(age)
            found.add(pruned)
            if self.tombstone is not None:
                forgotten = pruned + self.tombstone + _lag(self.tombstone)
                found.add(forgotten)
                if self.keys is not None:
                    found.add(max(forgotten, self.keys + _lag(self.keys)))
        return sorted(found)

    @property
    def pass_interval(self) -> int:
        """How long after the beginning of a full pass the next one begins."""
        return min(max(min(self.ages.values(), default=_LONGEST_PASS) // 7, _SHORTEST_PASS), _LONGEST_PASS)


def _lag(age: int) -> int:
    return min(age // 7, _LONGEST_LAG)


def _ms(seconds: float) -> int:
    return int(min(seconds, _CENTURY) * 1000)


def _limits(given: int | Mapping[str, int] | None, in_bytes: bool) -> list[Limit]:
    if given is None:
        return []
    if isinstance(given, int):
        return [Limit(FINAL_STATES, given, in_bytes)]
    return [Limit(frozenset({State(state)}), most, in_bytes) for state, most in given.items()]
