"""The application whose real workers are measured."""

from __future__ import annotations

import datetime as dt
import os
import struct
import time
from typing import Any

from celery import Celery
from celery.signals import task_postrun

from celery_durable import DurableTask, StepHandle, current_step
from tests.support.conf import configure
from tests.support.ledger import Ledger

from .bodies import GUARDED, double
from .floor import Floor, connect

__all__ = ["RECORD", "STAMPS", "app"]

app = configure(Celery("bench"))

#: Environment variable: the file into which every task writes when it was over.
STAMPS = "DURABLE_BENCH_STAMPS"
#: One such moment, in seconds since 1970.
RECORD = struct.Struct("d")

_stamps: int | None = None
_floor: dict[int, Floor] = {}


@task_postrun.connect
def stamp(**_: Any) -> None:
    """Everything is done but the acknowledgement, which the pool's parent sends."""
    global _stamps
    if STAMPS not in os.environ:
        return  # a process that is not measured, and has only imported this
    if _stamps is None:
        _stamps = os.open(os.environ[STAMPS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_stamps, RECORD.pack(time.time()))


@app.task(acks_late=True)
def plain(steps: int) -> None:
    """The same work without durability."""
    for number in range(steps):
        double(number)


@app.task(acks_late=True)
def bare(steps: int) -> None:
    """The same work, and one commit of its own."""
    for number in range(steps):
        double(number)
    ground = _floor.get(os.getpid())
    if ground is None:
        ground = _floor[os.getpid()] = connect(app.conf.durable_database_url)
    ground.commit_one()


@app.task(base=DurableTask, bind=True)
def durable(self: DurableTask, steps: int) -> None:
    """Idempotent steps."""
    for number in range(steps):
        self.durable.step("double", double, number)


@app.task(base=DurableTask, bind=True)
def guarded(self: DurableTask, steps: int) -> None:
    """Guarded steps."""
    for number in range(steps):
        self.durable.step(GUARDED, double, number)


@app.task(base=DurableTask, bind=True)
def killed(self: DurableTask) -> None:
    """Waits to be killed, and goes on with a new step where it was killed once."""
    self.durable.step("before", double, 1)
    if self.durable.attempt == 0:
        time.sleep(0.2)  # until there is a row, in which its death is counted
        Ledger.from_env().fire("holding", execution=self.request.id)
        time.sleep(600)
    self.durable.step("after", _happen)


@app.task(base=DurableTask, bind=True)
def sleeper(self: DurableTask, until: str) -> None:
    """Sleeps, and says when it woke."""
    due = dt.datetime.fromisoformat(until)
    self.durable.sleep_until(due)
    Ledger.from_env().fire("awake", due=due.timestamp())


def _happen() -> None:
    step: StepHandle = current_step()
    Ledger.from_env().fire("went on", execution=step.execution_id)
