"""Durable tasks in every form in which Celery takes tasks; each body kills its process once, in the middle.

The name of a task is that of its form.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import celery
from celery import Celery, shared_task
from celery.contrib.django.task import DjangoTask

from celery_durable import DurableTask, Intent, OnAmbiguous, current_step, guarded, step
from tests.support.conf import configure
from tests.support.ledger import Ledger

app = configure(Celery("forms"))


# -- what the bodies do -----------------------------------------------------------------------------------------


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
def charge() -> str:
    """An effect that must not be repeated."""
    execution = current_step().execution_id
    Ledger.from_env().fire("charge", execution=execution)
    return execution


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
def ship(amount: int) -> int:
    """The same, after the death of the process."""
    Ledger.from_env().fire("ship", execution=current_step().execution_id)
    return amount


def die_once(execution: str) -> None:
    ledger = Ledger.from_env()
    if not ledger.count("died", execution=execution):
        ledger.fire("died", execution=execution)
        os.kill(os.getpid(), signal.SIGKILL)


def body(amount: int) -> int:
    die_once(charge())
    return ship(amount)


# -- functions --------------------------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True, name="bound")
def bound(self: DurableTask, amount: int, *, times: int = 1) -> int:
    die_once(self.durable.step(charge.descriptor, charge))
    return self.durable.step(ship.descriptor, ship, amount * times)


@app.task(base=DurableTask, name="unbound")
def unbound(amount: int) -> int:
    return body(amount)


@shared_task(base=DurableTask, name="shared")
def shared(amount: int) -> int:
    return body(amount)


@app.on_after_finalize.connect
def late(sender: Celery, **_: Any) -> None:
    sender.task(body, base=DurableTask, name="late")


@app.task(base=DurableTask, name="async")
async def later(amount: int) -> int:
    return body(amount)


@app.task(base=DurableTask, name="untyped", typing=False)
def untyped(*amounts: int) -> int:
    return body(sum(amounts))


@app.task(base=DurableTask, name="without_result", ignore_result=True)
def without_result(amount: int) -> int:
    return body(amount)


@app.task(base=DurableTask, name="early_ack", acks_late=False, reject_on_worker_lost=False)
def early_ack(amount: int) -> int:
    return body(amount)


@app.task(base=DurableTask, bind=True, name="autoretry", autoretry_for=(OSError,), default_retry_delay=0)
def autoretry(self: DurableTask, amount: int) -> int:
    execution = charge()
    if self.request.retries < 2:
        raise OSError("not yet")
    die_once(execution)
    return ship(amount)


@app.task(base=DurableTask, bind=True, name="retry", default_retry_delay=0)
def retry(self: DurableTask, amount: int) -> int:
    die_once(charge())
    if self.request.retries < 2:
        # The next attempt is asked for with other arguments.
        raise self.retry(args=(amount + 1,))
    return ship(amount)


@app.task(base=DurableTask, name="calling")
def calling(amount: int) -> int:
    """Calls another durable task as the function that it is."""
    return unbound(amount) + 1


@app.task(base=DurableTask, bind=True, name="request")
def request(self: DurableTask, amount: int) -> dict[str, Any]:
    body(amount)
    seen = self.request
    return {
        "id": seen.id == self.durable.execution_id,
        "args": list(seen.args),
        "kwargs": seen.kwargs,
        "retries": seen.retries,
        "root": seen.root_id == seen.id,
        "note": seen.headers.get("note"),
        "priority": seen.delivery_info["priority"],
        "correlation": seen.correlation_id == seen.id,
        "late": [self.acks_late, self.reject_on_worker_lost],
        "direct": [seen.called_directly, seen.is_eager],
    }


# -- classes ----------------------------------------------------------------------------------------------------


class ClassBased(DurableTask):
    name = "class_based"

    def run(self, amount: int) -> int:
        die_once(self.durable.step(charge.descriptor, charge))
        return self.durable.step(ship.descriptor, ship, amount)


class Static(DurableTask):
    name = "static"

    @staticmethod
    def run(amount: int) -> int:
        return body(amount)


class Retrying(DurableTask):
    name = "class_retry"
    autoretry_for = (OSError,)
    default_retry_delay = 0

    def run(self, amount: int) -> int:
        execution = charge()
        if not self.request.retries:
            raise OSError("not yet")
        die_once(execution)
        return ship(amount)


class Template(DurableTask):
    """A base class with hooks, a step of its own, and a ``__call__`` of its own."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        Ledger.from_env().fire("before_start", execution=task_id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        Ledger.from_env().fire("on_success", execution=task_id)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 2

    def run(self, amount: int) -> int:
        return body(self.price(amount))

    def price(self, amount: int) -> int:
        raise NotImplementedError


class Derived(Template):
    name = "derived"

    def price(self, amount: int) -> int:
        return self.durable.step("price", lambda: amount + 1)


for cls in (ClassBased, Static, Retrying, Derived):
    app.register_task(cls())


@app.task(base=Template, name="on_template")
def on_template(amount: int) -> int:
    return body(amount)


class Shop(DurableTask, DjangoTask):
    abstract = True


class ShopTheOtherWay(DjangoTask, DurableTask):
    abstract = True


app.task(body, base=Shop, name="django")
app.task(body, base=ShopTheOtherWay, name="django_first")

if celery.VERSION >= (5, 5):
    from pydantic import BaseModel

    class Order(BaseModel):
        amount: int

    class Parcel(BaseModel):
        weight: int

    @app.task(base=DurableTask, name="pydantic", pydantic=True)
    def pydantic_task(order: Order) -> Parcel:
        return Parcel(weight=body(order.amount))


# -- replacements -----------------------------------------------------------------------------------------------


@app.task(name="plain")
def plain(amount: int) -> int:
    Ledger.from_env().fire("plain")
    return amount + 1


@app.task(base=DurableTask, bind=True, name="replaced")
def replaced(self: DurableTask, amount: int, by: str) -> Any:
    """Hands on to something else; or to itself, by way of another task."""
    die_once(charge())
    replacements = {
        "durable": next_one.si(amount),
        "plain": plain.si(amount),
        "chain": plain.si(amount) | plain.s() | next_one.s(),
        "group": celery.group(plain.si(amount), plain.si(amount + 1)),
        "chord": celery.chord([plain.si(amount), plain.si(amount)], next_one.s()),
        "itself": plain.si(amount) | replaced.s("plain"),
    }
    return self.replace(replacements[by])


@app.task(base=DurableTask, name="next_one")
def next_one(amount: int | list[int]) -> int:
    return ship(amount if isinstance(amount, int) else sum(amount)) * 10


@app.task(base=DurableTask, bind=True, name="recursive")
def recursive(self: DurableTask, amount: int, rounds: int = 3) -> Any:
    """Replaces itself, with other arguments."""
    self.durable.step(f"round {rounds}", lambda: Ledger.from_env().fire("round", execution=self.request.id))
    if rounds > 1:
        return self.replace(self.si(amount, rounds - 1))
    return body(amount)
