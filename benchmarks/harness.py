"""Measuring side by side: what is compared takes turns, round after round, so that a noisy minute hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Case", "Figure", "Note", "Section", "Spread", "all_in", "measure", "ratio", "stopwatch"]


class Spread(NamedTuple):
    """A median, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass
class Figure:
    """One thing that was measured, round by round."""

    name: str
    #: What the samples are: ``s`` (seconds), ``1/s``, ``bytes``, ``commits`` or ``share`` (of 1).
    unit: str = "s"
    #: The samples of each round.
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def per_round(self) -> list[float]:
        """The median of each round."""
        return [statistics.median(samples) for samples in self.rounds if samples]

    @property
    def spread(self) -> Spread:
        """Of the rounds."""
        return Spread.of(self.per_round)

    @property
    def samples(self) -> list[float]:
        """All samples of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    def percentile(self, percent: int) -> float:
        """Of all samples of all rounds."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def ratio(figure: Figure, reference: Figure) -> Spread:
    """How many times the reference, taken round by round: both sides of each quotient had the same weather."""
    pairs = zip(figure.per_round, reference.per_round, strict=True)
    return Spread.of([a / b for a, b in pairs])


#: Records one sample: name of the figure, value.
Note = Callable[[str, float], None]


@dataclass(frozen=True)
class Case:
    """What takes one turn in every round.

    :param figures: name → unit of what the turn notes.
    :param turn: does it, and notes at least one sample for each figure.
    """

    figures: dict[str, str]
    turn: Callable[[Note], None]


@dataclass
class Section:
    """The figures of one suite on one database."""

    suite: str
    #: ``sqlite``, ``postgresql`` or ``mysql``.
    database: str
    figures: dict[str, Figure]
    #: Figure → the figure that it is given as a multiple of; those that are missing have none.
    references: dict[str, str] = field(default_factory=dict)
    #: What a reader must know to read the figures.
    remarks: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.suite} on {self.database}"

    def times(self, figure: Figure) -> Spread | None:
        """The figure as a multiple of its reference."""
        known = self.figures.get(self.references.get(figure.name, ""))
        return None if known is None else ratio(figure, known)


def all_in(figures: dict[str, Figure], reference: str) -> dict[str, str]:
    """References: every figure in one, where they have the same unit."""
    unit = figures[reference].unit
    return {figure.name: reference for figure in figures.values() if figure.unit == unit}


def measure(
    cases: Sequence[Case], rounds: int, progress: Callable[[str], None], *, warm_up: bool = True
) -> dict[str, Figure]:
    """Let the cases take turns, A B C A B C ...

    :param progress: told what comes next.
    :param warm_up: one more round, before the others and not counted.
    """
    figures: dict[str, Figure] = {}
    for case in cases:
        for name, unit in case.figures.items():
            assert name not in figures, f"two cases measure {name!r}"
            figures[name] = Figure(name, unit)
    for number in range(0 if warm_up else 1, rounds + 1):
        for case in cases:
            progress(f"{'warm-up' if number == 0 else f'round {number} of {rounds}'}: {next(iter(case.figures))}")
            noted: dict[str, list[float]] = {name: [] for name in case.figures}

            def note(name: str, value: float, noted: dict[str, list[float]] = noted) -> None:
                noted[name].append(value)

            case.turn(note)
            assert all(noted.values()), f"a turn left out {[name for name, found in noted.items() if not found]}"
            if number:
                for name, samples in noted.items():
                    figures[name].rounds.append(samples)
    return figures


@contextmanager
def stopwatch(note: Note, name: str, per: int = 1) -> Iterator[None]:
    """Note how long the block takes, in seconds, divided by ``per``."""
    begin = time.perf_counter()
    yield
    note(name, (time.perf_counter() - begin) / per)
