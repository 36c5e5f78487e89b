"""The application whose workers are run on every pool, stopped in every way, and told to revoke what they do."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import before_task_publish, task_postrun, worker_ready
from celery.worker.request import Request

from celery_durable import DurableTask, Intent, OnAmbiguous, StepDescriptor, current_step, step
from tests.support.conf import configure
from tests.support.gates import await_gate, gate
from tests.support.ledger import Ledger
from tests.support.wait import eventually

app = configure(Celery("workers"))

BEFORE = StepDescriptor.guarded("before", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)
AFTER = StepDescriptor.guarded("after", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)


def told(execution: str, name: str = "body") -> None:
    """Tell the test that a body is here."""
    Ledger.from_env().fire(name, execution=execution)


@before_task_publish.connect
def publish(headers: dict[str, Any], **_: Any) -> None:
    """Where the gate ``slow`` is open, the broker takes its time."""
    if gate("slow").exists():
        told(headers["id"], "publishing")
        time.sleep(0.5)


@task_postrun.connect
def linger(task_id: str, **_: Any) -> None:
    """And there a body is not left before somebody has begun to send its message again."""
    if gate("slow").exists():
        eventually(lambda: Ledger.from_env().count("publishing", execution=task_id))


@worker_ready.connect
def watch_pool(sender: Any, **_: Any) -> None:
    """Where the gate ``watch pool`` is open, tell which threads look after the pool's processes."""
    if gate("watch pool").exists():
        pool = sender.controller.pool._pool
        maintain = pool._maintain_pool
        known: set[int] = set()

        def watched() -> None:
            if threading.get_ident() not in known:
                known.add(threading.get_ident())
                Ledger.from_env().fire("maintains", thread=threading.current_thread().name)
            maintain()

        pool._maintain_pool = watched


def happen() -> str:
    """An effect that the test counts."""
    running = current_step()
    told(running.execution_id, running.name)
    return running.name


@step
def double(number: int) -> int:
    told(current_step().execution_id, f"double {number}")
    return 2 * number


@step
async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    told(current_step().execution_id, f"double {number}")
    return 2 * number


# -- one body for each way of writing one -----------------------------------------------------------------------


class NotYet(Exception):
    """Something that a retry cures."""


@app.task(base=DurableTask, bind=True, max_retries=2, default_retry_delay=0)
def retrying(self: DurableTask) -> list[int]:
    """Asks for a retry twice, with a step before each."""
    values = []
    for number in range(3):
        values.append(double(number))
        if self.request.retries <= number < 2:
            raise self.retry(exc=NotYet(number))
    told(self.request.id)
    return values


@app.task(base=DurableTask, autoretry_for=(NotYet,), retry_kwargs={"max_retries": 1, "countdown": 0}, bind=True)
def failing_once(self: DurableTask) -> int:
    value = double(1)
    if not self.request.retries:
        raise NotYet
    return value


@app.task(base=DurableTask)
async def coroutine(count: int) -> list[int]:
    """Steps one after the other, and then at the same time."""
    values = [await double_later(0)]
    values += await asyncio.gather(*(double_later(n) for n in range(1, count)))
    return values


@app.task(base=DurableTask, bind=True)
def branching(self: DurableTask, count: int) -> list[int]:
    """Branches with a step in each."""
    with self.durable.parallel() as scope:
        branches = [scope.submit(double, number) for number in range(count)]
    return [branch.result() for branch in branches]


# -- bodies that last -------------------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True)
def held(self: DurableTask, gate: str = "release") -> str:
    """Does one step and runs on until a gate opens."""
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    await_gate(gate)
    self.durable.step(AFTER, happen)
    return "released"


@app.task(base=DurableTask, bind=True)
def quits(self: DurableTask, error: str) -> None:
    """Ends as no body should."""
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    raise {"SystemExit": SystemExit, "CancelledError": asyncio.CancelledError}[error]


@app.task(base=DurableTask, bind=True)
def busy(self: DurableTask) -> str:
    """Computes without a pause, so that no greenlet gets a turn, until a gate opens."""
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    release = gate("release")
    # Many short calls of the system would each be a chance for the others, and one long one would leave them none:
    # CPython's lock is unfair.
    while not release.exists():
        sum(range(200_000))
    self.durable.step(AFTER, happen)
    return "computed"


@app.task(base=DurableTask, bind=True)
def tiny(self: DurableTask, number: int) -> int:
    told(self.request.id)
    return double(number)


# -- bodies that are told to end --------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True, soft_time_limit=2)
def softly_limited(self: DurableTask, handles: bool) -> str:
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    try:
        await_gate("never")
    except SoftTimeLimitExceeded:
        if not handles:
            raise
    self.durable.step(AFTER, happen)
    return "in time"


@app.task(base=DurableTask, bind=True, time_limit=2)
def limited(self: DurableTask) -> None:
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    try:
        await_gate("never")
    finally:
        self.durable.step(AFTER, happen)


class OwnRequest(Request):
    """A request class of the application's own, as Celery documents it."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        told(self.id, "timed out")
        super().on_timeout(soft, timeout)


@app.task(base=DurableTask, bind=True, time_limit=2, Request=f"{__name__}:OwnRequest")
def limited_in_its_own_way(self: DurableTask) -> None:
    told(self.request.id)
    await_gate("never")


@app.task(base=DurableTask, bind=True, time_limit=2, acks_on_timeout=False, acks_on_failure_or_timeout=False)
def limited_each_time(self: DurableTask) -> str:
    """Has a time limit for each try, and is in time once the gate is open."""
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    await_gate("release")
    self.durable.step(AFTER, happen)
    return "released"


@app.task(base=DurableTask, bind=True)
def coming_back(self: DurableTask, countdown: float) -> None:
    """Runs until the gate opens, and asks for a retry then."""
    self.durable.step(BEFORE, happen)
    told(self.request.id)
    await_gate("retry")
    raise self.retry(countdown=countdown)


@app.task(base=DurableTask, bind=True)
def calls(self: DurableTask, execution: str) -> None:
    """Publishes an execution, with the outbox where that is on."""
    held.apply_async(task_id=execution)
