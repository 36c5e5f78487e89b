"""What everything may cost: the project's budget as data, and whether a run met it.

Most rows are ratios of two figures that took turns in the same run. The few absolute ones say something about the
machine too; read them on one that is quiet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .endtoend import BARE_TASK, FEW, MANY, PLAIN_TASK, commits_of, durable, rate
from .floor import BARE
from .harness import Figure, Section, ratio
from .ingredients import APPEND, ENTRIES
from .looks import look_of
from .peers.suite import OURS, OURS_GUARDED, replayed, step
from .recovery import KILLED_PROCESS, KILLED_WORKER
from .replay import memory_of
from .replay import replayed as replay_of
from .scale import MEASURED, name_of
from .steps import FIVE_GUARDED, GUARDED_STEP, whole

__all__ = ["ROWS", "Row", "Verdict", "judge", "of_journal"]


@dataclass(frozen=True)
class Row:
    """One line of the budget.

    :param suite: in whose section the figures are.
    :param limit: the largest value that is within the budget; the smallest, where ``at_least``.
    :param of: the value is a multiple of this figure; None: it is in the figure's own unit.
    :param times: how many of the references make one.
    :param percentile: of the samples; None: the median of the rounds.
    :param digits: round to so many before it is judged.
    """

    what: str
    suite: str
    figure: str
    limit: float
    of: str | None = None
    times: float = 1.0
    at_least: bool = False
    percentile: int | None = None
    digits: int | None = None
    databases: tuple[str, ...] = ("sqlite", "postgresql", "mysql")

    def value(self, figures: dict[str, Figure]) -> float | None:
        """What was measured; None where it was not."""
        figure = figures.get(self.figure)
        if figure is None or (self.of is not None and self.of not in figures):
            return None
        if self.of is not None:
            found = ratio(figure, figures[self.of]).median / self.times
        elif self.percentile is not None:
            found = figure.percentile(self.percentile)
        else:
            found = figure.spread.median
        return found if self.digits is None else round(found, self.digits)

    def within(self, value: float) -> bool:
        """Is it?"""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Verdict:
    """A row on one database."""

    row: Row
    database: str
    #: In the row's unit; None where it was not measured.
    value: float | None
    unit: str
    judged: bool

    @property
    def met(self) -> bool | None:
        """None where it was not measured, or not judged."""
        return None if self.value is None or not self.judged else self.row.within(self.value)

    @property
    def word(self) -> str:
        """For people."""
        if self.met is not None:
            return "met" if self.met else "NOT MET"
        return "not measured" if self.value is None else "not judged"


_FIVE = durable(5)
#: A hundred steps are one segment of the journal.
_SEGMENT = memory_of(100)
_ONLY_POSTGRESQL = ("postgresql",)

ROWS: tuple[Row, ...] = (
    Row("idempotent step of a 100-step body, in bare commits", "steps", whole(100), 0.2, of=BARE),
    Row("guarded step, in two bare commits", "steps", GUARDED_STEP, 1.5, of=BARE, times=2),
    Row("5 guarded steps, 99th percentile", "steps", FIVE_GUARDED, 5e-3, percentile=99, databases=("sqlite",)),
    Row("append to the writer", "steps", APPEND, 3e-6),
    Row("entries appended and committed", "steps", ENTRIES, 50_000, at_least=True),
    Row("replayed step of a 5,000-step resume", "replay", replay_of(5_000), 10e-6),
    *(
        # O(segment): some constant, and not 50 or 100 times as much.
        Row(
            f"memory of a {steps:,}-step resume, in that of 100 steps",
            "replay: memory",
            memory_of(steps),
            4,
            of=_SEGMENT,
        )
        for steps in (5_000, 10_000)
    ),
    *(
        Row(
            f"tasks/s of 5 idempotent steps, in those of {what}, {processes} pool processes",
            f"endtoend: throughput, {processes} pool processes",
            rate(_FIVE, processes),
            limit,
            of=rate(reference, processes),
            at_least=True,
        )
        for processes in (FEW, MANY)
        for what, reference, limit in (
            ("a plain task with one commit", BARE_TASK, 0.85),
            ("a plain task", PLAIN_TASK, 0.7),
        )
    ),
    Row("commits of a task of 5 idempotent steps", "endtoend: commits", commits_of(_FIVE), 2, digits=0),
    Row("the same, fresh delivery and nothing guarded", "endtoend: commits", commits_of(_FIVE), 1, digits=0),
    Row("take-over from a killed pool process", "recovery", KILLED_PROCESS, 1.0),
    Row("take-over from a killed worker, beyond the lease", "recovery", KILLED_WORKER, 1.0),
    *(
        Row(what, "peers", theirs, limit, of=ours, at_least=True, databases=_ONLY_POSTGRESQL)
        for what, theirs, ours, limit in (
            ("step of DBOS, in idempotent ones", step("dbos"), step(OURS), 40),
            ("step of absurd, in idempotent ones", step("absurd"), step(OURS), 15),
            ("step of DBOS, in guarded ones", step("dbos"), OURS_GUARDED, 4),
            ("replayed step of DBOS, in ours", replayed("dbos"), replayed(OURS), 100),
            ("replayed step of Restate, in ours", replayed("restate"), replayed(OURS), 4),
        )
    ),
)


def of_journal(size: int) -> tuple[Row, ...]:
    """A journal with so many finished executions, or sleepers, beside an empty one."""
    look = f"look of recovery: {size:,} asleep, in that of an empty journal"
    return (
        Row(look, "looks", look_of(size), 1.25, of=look_of(0)),
        *(
            Row(
                f"{what}: journal of {size:,}, in that of an empty one",
                "scale",
                name_of(what, size),
                1.25,
                name_of(what, 0),
            )
            for what in MEASURED
        ),
    )


def judge(
    sections: Iterable[Section], suites: Sequence[str], databases: Sequence[str], largest_journal: int, *, judged: bool
) -> list[Verdict]:
    """Every row that belongs to these suites, on every database of the run.

    :param judged: False for a run whose figures say nothing.
    """
    found = {(section.suite, section.database): section.figures for section in sections}
    verdicts = []
    for row in (*ROWS, *of_journal(largest_journal)):
        for database in databases:
            if database in row.databases and row.suite.split(":")[0] in suites:
                figures = found.get((row.suite, database), {})
                unit = "×" if row.of is not None else _UNITS.get(row.figure, "s")
                verdicts.append(Verdict(row, database, row.value(figures), unit, judged))
    return verdicts


#: Rows without a reference whose unit is not seconds.
_UNITS = {ENTRIES: "1/s", commits_of(_FIVE): "commits"}
