"""The application whose executions have children."""

from __future__ import annotations

from typing import Any

from celery import Celery, chain, chord, group

from celery_durable import ChildFailed, DurableTask, Intent, OnAmbiguous, StepDescriptor, current_step
from tests.support.conf import configure
from tests.support.ledger import Ledger

app = configure(Celery("children"))

# Under FAIL, so that a second effect could not go unnoticed.
BEFORE, AFTER, WORK = (
    StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL) for name in ("before", "after", "work")
)


def happen(value: Any = None) -> Any:
    """An effect that the test counts."""
    step = current_step()
    Ledger.from_env().fire(step.name, execution=step.execution_id, value=value)
    return value


def undo(booked: Any) -> None:
    """An effect that the test counts."""
    happen()


BOOK = StepDescriptor.idempotent("book", compensate=undo)


class Declined(Exception):
    """What a child may raise."""


@app.task(base=DurableTask, bind=True)
def double(self: DurableTask, number: int) -> int:
    """A durable child."""
    return 2 * int(self.durable.step(WORK, happen, number))


@app.task
def plain(number: int) -> int:
    """A child that is not durable."""
    Ledger.from_env().fire("plain", number=number)
    return 2 * number


@app.task
def total(numbers: list[int]) -> int:
    """Adds up, in a chord."""
    return sum(numbers)


@app.task(base=DurableTask, bind=True)
def decline(self: DurableTask, durable: bool = True) -> None:
    """A durable child that fails."""
    raise Declined("no")


@app.task
def decline_plainly() -> None:
    """A child that fails and is not durable."""
    raise Declined("no")


@app.task(base=DurableTask, bind=True)
def rest(self: DurableTask, seconds: float) -> str:
    """A durable child that takes long."""
    self.durable.sleep(seconds)
    return str(self.durable.step(WORK, happen, "rested"))


@app.task(base=DurableTask, bind=True, max_retries=3)
def stubborn(self: DurableTask, number: int) -> int:
    """A durable child that needs two tries."""
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return 2 * int(self.durable.step(WORK, happen, number))


@app.task(base=DurableTask, bind=True)
def instead(self: DurableTask, number: int) -> int:
    """A durable child in whose place another task goes on."""
    raise self.replace(double.s(number))


@app.task(base=DurableTask, bind=True)
def tree(self: DurableTask, depth: int) -> int:
    """Has two children of its own kind."""
    if not depth:
        return int(self.durable.step(WORK, happen, 1))
    return int(sum(self.durable.gather(tree.s(depth - 1), tree.s(depth - 1))))


@app.task(base=DurableTask, bind=True)
def calls(self: DurableTask, number: int) -> int:
    """Has a durable child."""
    self.durable.step(BEFORE, happen)
    value = self.durable.call(double.s(number))
    return int(self.durable.step(AFTER, happen, value))


@app.task(base=DurableTask, bind=True)
def calls_plain(self: DurableTask, number: int) -> int:
    """Has a child that is not durable."""
    self.durable.step(BEFORE, happen)
    value = self.durable.call(plain.s(number))
    return int(self.durable.step(AFTER, happen, value))


@app.task(base=DurableTask, bind=True)
async def gathers(self: DurableTask, number: int) -> int:
    """Has several children, in a coroutine."""
    self.durable.step(BEFORE, happen)
    values = await self.durable.gather(*(double.s(n) for n in range(number)), concurrency=2)
    return int(self.durable.step(AFTER, happen, sum(values)))


@app.task(base=DurableTask, bind=True)
def hurries(self: DurableTask) -> list[Any]:
    """Needs one of three, and says what it got."""
    got = self.durable.gather(rest.s(3600), double.s(1), rest.s(3600), until="first")
    return [one if not isinstance(one, ChildFailed) else type(one).__name__ for one in got]


@app.task(base=DurableTask, bind=True)
def many(self: DurableTask, count: int, concurrency: int | None = None) -> int:
    """Has many children."""
    return int(sum(self.durable.gather(*(double.s(n) for n in range(count)), concurrency=concurrency)))


@app.task(base=DurableTask, bind=True, autoretry_for=(ConnectionError,), max_retries=3, default_retry_delay=0)
def kinds(self: DurableTask) -> dict[str, Any]:
    """Has a child of each kind, and is tried again in between."""
    ctx = self.durable

    def error_of(signature: Any, **options: Any) -> list[str]:
        try:
            ctx.call(signature, **options)
        except ChildFailed as error:
            return [type(error).__name__, type(error.error).__name__]
        return []

    found = {
        "chain": ctx.call(chain(double.s(1), plain.s())),
        "chain of durable ones": ctx.call(chain(plain.s(1), double.s())),
        "chord": ctx.call(chord([double.s(1), plain.s(2)], total.s())),
        "group": ctx.call(group(double.s(1), plain.s(2))),
        "group in a chain": ctx.call(chain(plain.s(1), group(double.s(), plain.s()))),
        "retried": ctx.call(stubborn.s(1)),
        "replaced": ctx.call(instead.s(1)),
        "by name": ctx.call(app.signature(double.name, (4,))),
        "failed": error_of(decline.s()),
        "failed plainly": error_of(decline_plainly.s()),
        "failed in a chain": error_of(chain(plain.s(1), decline_plainly.si(), double.s())),
        "failed in a chord": error_of(chord([decline_plainly.si(), plain.s(1)], total.s())),
        "expired": error_of(plain.s(1).set(countdown=0.3, expires=0.1)),
        "late": error_of(rest.s(3600), timeout=0.5),
    }
    if self.request.retries < 1:
        raise ConnectionError
    return found


@app.task(base=DurableTask, bind=True)
def patient(self: DurableTask) -> Any:
    """Waits for children that take for ever, a grandchild among them."""
    return self.durable.gather(rest.s(3600), one_that_waits.s(), plain.s(1).set(countdown=3600))


@app.task(base=DurableTask, bind=True)
def one_that_waits(self: DurableTask) -> Any:
    """A child with a child."""
    return self.durable.call(rest.s(3600))


@app.task(base=DurableTask, bind=True)
def undoes(self: DurableTask) -> Any:
    """Has something to undo, and a child that takes for ever."""
    self.durable.step(BOOK, happen)
    return self.durable.call(rest.s(3600))
