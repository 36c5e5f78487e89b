"""Executions that wait: how late they wake, and what those that sleep cost their worker in memory."""

from __future__ import annotations

import datetime as dt
import time

import psutil
import sqlalchemy as sa

from celery_durable.store.records import State
from celery_durable.store.tables import executions
from tests.support.wait import eventually

from .harness import Case, Figure, Note
from .stage import Stage

__all__ = ["EMPTY", "WAKING", "WEIGHING", "cases", "memory"]

BURST = "from due to awake, all due at once"
EMPTY = "memory of the worker, nothing asleep"

#: Sleepers that become due in one second, where they do so one after the other.
_PER_SECOND = 50
_PATIENCE = 300.0

WAKING = ("A worker with two pool processes; from the moment that a sleeper named to its body's next line.",)
WEIGHING = ("What the worker's processes do not share, added up; after equally many tasks.",)


def spread_of(sleepers: int) -> str:
    """Name of the figure: latency of sleepers that are due one after the other."""
    return f"from due to awake, {sleepers:,} sleepers, {_PER_SECOND} due each second"


def asleep_of(sleepers: int) -> str:
    """Name of the figure: memory."""
    return f"memory of the worker, {sleepers:,} asleep"


class _Sleepers:
    """Executions that sleep on one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._engine = stage.database.engine()

    def asleep(self) -> int:
        """How many there are."""
        query = sa.select(sa.func.count()).where(executions.c.state == State.SUSPENDED.value)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def put_to_sleep(self, until: list[float]) -> None:
        """Start one for each of these moments, in seconds since 1970."""
        before = self.asleep()
        for moment in until:
            self._stage.send("sleeper", dt.datetime.fromtimestamp(moment, dt.timezone.utc).isoformat())
        eventually(lambda: self.asleep() >= before + len(until), _PATIENCE, interval=0.1)

    def wake(self, note: Note, name: str, offsets: list[float]) -> None:
        """Put them to sleep, and note how late each of them wakes.

        :param offsets: seconds between the first moment and each of them.
        """
        ledger = self._stage.ledger
        before = ledger.count("awake")
        begin = time.time() + 3.0 + len(offsets) / 60
        self.put_to_sleep([begin + offset for offset in offsets])
        assert time.time() < begin, "they were due before all of them slept"
        eventually(lambda: ledger.count("awake") >= before + len(offsets), _PATIENCE, interval=0.5)
        for entry in ledger.entries("awake")[before:]:
            note(name, entry["at"] - entry["due"])


def cases(stage: Stage, *, quick: bool) -> list[Case]:
    """The suite."""
    number = 10 if quick else 1000
    sleepers = _Sleepers(stage)
    spread = spread_of(number)
    stage.worker()
    one_by_one = [index / _PER_SECOND for index in range(number)]
    return [
        Case({spread: "s"}, lambda note: sleepers.wake(note, spread, one_by_one)),
        Case({BURST: "s"}, lambda note: sleepers.wake(note, BURST, [0.0] * number)),
    ]


def memory(stage: Stage, *, quick: bool) -> dict[str, Figure]:
    """What a worker takes after many tasks of which none sleeps, and what one takes while that many sleep."""
    number = 20 if quick else 10_000
    sleepers = _Sleepers(stage)
    figures = {}
    for name, asleep in ((EMPTY, False), (asleep_of(number), True)):
        worker = stage.worker()
        if asleep:
            sleepers.put_to_sleep([time.time() + 86_400.0] * number)
        else:
            stage.work("durable", 5, number)
        processes = [psutil.Process(pid) for pid in (worker.pid, *worker.children())]
        figures[name] = Figure(name, "bytes", [[float(sum(one.memory_full_info().uss for one in processes))]])
        worker.end()
    return figures
