"""Whole tasks through a real prefork worker, beside the same task without durability."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.support.worker import WorkerProcess

from .commits import counter
from .harness import Case, Figure, Note
from .processors import IDLE, PARTS, account, share
from .stage import Stage

__all__ = [
    "BARE_TASK",
    "FEW",
    "KINDS",
    "MANY",
    "PLAIN_TASK",
    "Kind",
    "commits",
    "commits_of",
    "durable",
    "latencies",
    "latency",
    "loads",
    "rate",
]


class Kind(NamedTuple):
    """A task, and how it is called."""

    name: str
    task: str
    argument: int


PLAIN_TASK = "plain task"
BARE_TASK = "plain task with one bare commit"
#: Pool processes of the workers that are measured.
FEW, MANY = 2, 4


def durable(steps: int) -> str:
    """Name of a durable task."""
    return f"durable task of {steps} steps"


KINDS = (
    Kind(PLAIN_TASK, "plain", 5),
    Kind(BARE_TASK, "bare", 5),
    *(Kind(durable(steps), "durable", steps) for steps in (0, 5, 20)),
    Kind("durable task of 2 guarded steps", "guarded", 2),
)


def rate(kind: str, processes: int) -> str:
    """Name of the figure: tasks per second from a full queue."""
    return f"{kind}, {processes} pool processes, tasks/s"


def latency(kind: str) -> str:
    """Name of the figure: from publishing to the end of the task, on an idle worker."""
    return f"{kind}, latency"


def commits_of(kind: str) -> str:
    """Name of the figure: commits that the database counted, per task."""
    return f"{kind}, commits"


def _throughput(stage: Stage, kind: Kind, processes: int, worker: WorkerProcess, number: int) -> Case:
    name = rate(kind.name, processes)

    def turn(note: Note) -> None:
        watch = account(note, kind.name, number, [worker])
        note(name, stage.throughput(kind.task, kind.argument, number, [worker], watch))

    taken = {share(kind.name, part): "s" for part in PARTS}
    return Case({name: "1/s", **taken, share(kind.name, IDLE): "share"}, turn)


def _latency(stage: Stage, kind: Kind, number: int) -> Case:
    def turn(note: Note) -> None:
        for _ in range(number):
            note(latency(kind.name), stage.latency(kind.task, kind.argument))

    return Case({latency(kind.name): "s"}, turn)


def loads(stage: Stage, processes: int, worker: WorkerProcess, *, quick: bool) -> list[Case]:
    """Throughput of a worker with so many pool processes, and whose processor time it takes."""
    return [_throughput(stage, kind, processes, worker, 60 if quick else 1000) for kind in KINDS]


def latencies(stage: Stage, *, quick: bool) -> list[Case]:
    """Latency, of whichever worker takes the default queue."""
    return [_latency(stage, kind, 5 if quick else 50) for kind in KINDS]


def commits(stage: Stage, *, quick: bool, progress: Callable[[str], None]) -> dict[str, Figure]:
    """What the database counts while a worker lives, in which recovery rests: with many tasks, less with few."""
    few, many = (5, 30) if quick else (10, 260)
    count = counter(stage.database)

    def life(kind: Kind, number: int) -> int:
        before = count()
        worker = stage.worker(concurrency=1, durable_recovery_interval=25.0)
        stage.work(kind.task, kind.argument, number)
        worker.end()
        return count() - before

    figures = {}
    for kind in KINDS:
        if quick and kind.name != durable(5):
            continue
        progress(f"counting commits: {kind.name}")
        name = commits_of(kind.name)
        figures[name] = Figure(name, "commits", [[(life(kind, many) - life(kind, few)) / (many - few)]])
    return figures


REMARKS = [
    "All tasks acknowledge late and ignore their results.",
    "Rates: a full queue, and the middle four fifths of it. Latencies: one task at a time.",
]

_MARKS = "The fraction: twice a second a worker marks, in one commit for all tasks, which results Celery has taken."

#: Database → what its commits are: those of the worker, divided by its tasks.
COUNTED = {
    "sqlite": ["Counted by the change counter of the WAL: write transactions of all processes.", _MARKS],
    "postgresql": [
        "Counted by the server's transaction ids; a transaction that writes nothing gets none.",
        _MARKS,
    ],
    "mysql": [
        "Counted by Com_commit of the whole server; an insert in autocommit mode, as the plain task's, is no COMMIT.",
        _MARKS,
    ],
}
