"""The application whose executions wait."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_durable import DurableTask, Intent, OnAmbiguous, Promise, PromiseTimeout, StepDescriptor, current_step
from tests.support.conf import configure
from tests.support.ledger import Ledger

app = configure(Celery("waits"))


def _guarded(name: str) -> StepDescriptor:
    # Under FAIL, so that a second effect could not go unnoticed.
    return StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)


BEFORE, AFTER = _guarded("before"), _guarded("after")


def happen(value: Any = None) -> Any:
    """An effect that the test counts."""
    step = current_step()
    Ledger.from_env().fire(step.name, execution=step.execution_id)
    return value


def give_away(promise_id: str, token: str) -> None:
    """Tell the test how to keep a promise."""
    Ledger.from_env().fire("asked", execution=current_step().execution_id, promise=promise_id, token=token)


def asked(task: DurableTask, **options: Any) -> Promise:
    promise = task.durable.promise("approval", **options)
    task.durable.step("ask", give_away, promise.id, promise.token)
    return promise


@app.task(base=DurableTask, bind=True)
def nap(self: DurableTask, seconds: float, value: Any = None) -> Any:
    """Sleeps between two steps."""
    self.durable.step(BEFORE, happen)
    self.durable.sleep(seconds)
    return self.durable.step(AFTER, happen, value)


@app.task(base=DurableTask, bind=True)
def snooze(self: DurableTask, seconds: float) -> None:
    """Only sleeps, and tells when it is up."""
    self.durable.sleep(seconds)
    Ledger.from_env().fire("up", execution=self.request.id)


@app.task(base=DurableTask, bind=True)
def approve(self: DurableTask) -> Any:
    """Waits for somebody."""
    self.durable.step(BEFORE, happen)
    value = self.durable.wait(asked(self))
    return self.durable.step(AFTER, happen, value)


@app.task(base=DurableTask, bind=True)
def await_word(self: DurableTask) -> Any:
    """Only waits for somebody, and tells when it goes on."""
    value = self.durable.wait(asked(self))
    Ledger.from_env().fire("up", execution=self.request.id)
    return value


@app.task(base=DurableTask, bind=True)
def race(self: DurableTask, seconds: float) -> Any:
    """Waits for somebody, but not for long."""
    self.durable.step(BEFORE, happen)
    first = self.durable.select(approval=asked(self), late=self.durable.timer(seconds))
    return self.durable.step(AFTER, happen, first.key)


@app.task(base=DurableTask, bind=True)
def branches(self: DurableTask, seconds: float) -> list[Any]:
    """Sleeps in one branch, waits in another, works in a third."""

    def sleeps() -> str:
        self.durable.sleep(seconds)
        return str(self.durable.step(AFTER, happen, "slept"))

    def waits() -> Any:
        return self.durable.wait(asked(self))

    with self.durable.parallel() as scope:
        made = [scope.submit(sleeps), scope.submit(waits), scope.step(BEFORE, happen, "worked")]
    return [one.result() for one in made]


@app.task(base=DurableTask, bind=True)
async def coroutine(self: DurableTask, seconds: float) -> list[Any]:
    """Sleeps and waits at the same time."""
    import asyncio

    self.durable.step(BEFORE, happen)
    _, value = await asyncio.gather(self.durable.sleep(seconds), self.durable.wait(asked(self)))
    return [self.durable.step(AFTER, happen, value)]


@app.task(base=DurableTask, bind=True)
def add(self: DurableTask, *numbers: int) -> int:
    """Sleeps over it."""
    self.durable.sleep(0.2)
    return int(self.durable.step(AFTER, happen, sum(numbers)))


@app.task(base=DurableTask, bind=True)
def total(self: DurableTask, numbers: list[int]) -> int:
    """Sleeps over several."""
    self.durable.sleep(0.2)
    return int(self.durable.step(AFTER, happen, sum(numbers)))


@app.task
def plain(number: int) -> int:
    """A task that is not durable."""
    Ledger.from_env().fire("plain", number=number)
    return number


@app.task(base=DurableTask, bind=True)
async def add_later(self: DurableTask, *numbers: int) -> int:
    """Sleeps over it, in ``async def``."""
    await self.durable.sleep(0.2)
    return int(self.durable.step(AFTER, happen, sum(numbers)))


@app.task(base=DurableTask, bind=True)
async def total_later(self: DurableTask, numbers: list[int]) -> int:
    """Sleeps over several, in ``async def``."""
    await self.durable.sleep(0.2)
    return int(self.durable.step(AFTER, happen, sum(numbers)))


@app.task(base=DurableTask, bind=True)
def fail_later(self: DurableTask, *numbers: int) -> int:
    """Fails after a sleep."""
    self.durable.sleep(0.2)
    self.durable.step(AFTER, happen)
    raise ValueError("too late")


@app.task(base=DurableTask, bind=True, max_retries=2)
def try_again(self: DurableTask, number: int) -> int:
    """Sleeps, is retried, and sleeps once more."""
    self.durable.sleep(0.2)
    self.durable.step(BEFORE, happen)
    if self.request.retries == 0:
        raise self.retry(countdown=0.2)
    self.durable.sleep(0.2)
    return int(self.durable.step(AFTER, happen, number))


@app.task(base=DurableTask, bind=True)
def hand_over(self: DurableTask, number: int) -> int:
    """Sleeps, and lets a chain of others, which sleep too, take its place."""
    self.durable.sleep(0.2)
    self.durable.step(BEFORE, happen)
    raise self.replace(add.s(number, 1) | add_later.s(1))


@app.task
def bad_news(request: Any, error: Any, traceback: Any) -> None:
    """An errback."""
    Ledger.from_env().fire("bad news", of=request.id, error=str(error))


@app.task(base=DurableTask, bind=True)
def impatient(self: DurableTask, seconds: float) -> str:
    """Waits for somebody who does not come in time."""
    promise = self.durable.promise("word", timeout=seconds)
    try:
        self.durable.wait(promise)
    except PromiseTimeout:
        return str(self.durable.step(AFTER, happen, "nobody"))
    return "somebody"
