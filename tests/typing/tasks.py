"""What a type checker knows of durable tasks and of what their bodies can ask for. Only mypy runs this file.

Celery's own part comes from celery-types, which knows no more of a decorated task than its class. For tasks of
`@durable_task` see durable_tasks.py.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Coroutine
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from typing_extensions import assert_type

from celery_durable import (
    Branch,
    DurableContext,
    DurableTask,
    Intent,
    OnAmbiguous,
    Parallel,
    StepDescriptor,
    StepRecord,
    get_logger,
    outbox_batch,
    step,
)

app = Celery("shop", task_cls=DurableTask)
CHARGE = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)


@step
def load(order_id: int) -> str:
    return str(order_id)


def charge(order_id: int, *, cents: int) -> bytes:
    return bytes(order_id + cents)


async def fetch(url: str) -> list[int]:
    return [len(url)]


# -- declaring --------------------------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True, autoretry_for=(OSError,))
def fulfil(self: DurableTask, order_id: int) -> bytes:
    order = load(order_id)
    assert_type(order, str)
    assert_type(self.durable, DurableContext)
    return self.durable.step(CHARGE, charge, order_id, cents=len(order))


@app.task(base=DurableTask)
async def fulfil_later(order_id: int) -> list[int]:
    return await fetch(load(order_id))


class Fulfil(DurableTask):
    name = "fulfil"

    def run(self, order_id: int) -> str:
        return self.durable.step("load", load, order_id)


a_task: DurableTask = fulfil
assert_type(fulfil.durable, DurableContext)
assert_type(fulfil.delay(1), AsyncResult[Any])
assert_type(fulfil.apply_async((1,), task_id="order-1", countdown=3), AsyncResult[Any])
a_task = fulfil_later
assert_type(fulfil_later.durable, DurableContext)
assert_type(app.register_task(Fulfil()), Fulfil)
assert_type(Fulfil().run(1), str)
Fulfil().run("1")  # type: ignore[arg-type]
fulfil.durable = None  # type: ignore[misc, assignment]
app.task(base=int)(load)  # type: ignore[type-var]

with outbox_batch():
    fulfil.delay(1)


# -- in a body --------------------------------------------------------------------------------------------------


def body(ctx: DurableContext) -> None:
    assert_type(ctx.step("load", load, 1), str)
    assert_type(ctx.step(CHARGE, charge, 1, cents=5), bytes)
    assert_type(ctx.step("sorted", sorted, [3, 1]), list[int])
    assert_type(ctx.step("inline", lambda: 3), int)
    assert_type(ctx.step_recorded("load", load, 1), StepRecord)
    assert_type(ctx.step_recorded("load", load, 1).key, bytes)
    assert_type((ctx.now(), ctx.uuid4(), ctx.random()), tuple[dt.datetime, uuid.UUID, float])
    assert_type((ctx.execution_id, ctx.attempt, ctx.replaying), tuple[str, int, bool])
    assert_type(ctx.patched("change"), bool)
    ctx.logger.info("order %s", 1)
    get_logger(__name__).info("order %s", 1)

    ctx.step("load", load, "1")  # type: ignore[arg-type]
    ctx.step(CHARGE, charge, 1)  # type: ignore[call-arg]
    ctx.step(CHARGE, charge, 1, cents="5")  # type: ignore[arg-type]
    ctx.step(load, 1)  # type: ignore[arg-type]
    ctx.step("load", load(1))  # type: ignore[arg-type]
    ctx.step_recorded("load", load, "1")  # type: ignore[call-overload]
    ctx.execution_id = "other"  # type: ignore[misc]


def branches(ctx: DurableContext) -> None:
    with ctx.parallel(max_workers=3) as scope:
        assert_type(scope, Parallel)
        one = scope.submit(load, 1)
        two = scope.step(CHARGE, charge, 1, cents=5)
    assert_type(one, Branch[str])
    assert_type(two, Branch[bytes])
    assert_type(one.result(), str)
    assert_type(two.done, bool)
    scope.submit(load, "1")  # type: ignore[call-overload]
    scope.step(CHARGE, charge, 1)  # type: ignore[call-overload]
    ctx.parallel(3)  # type: ignore[call-arg]


async def coroutines(ctx: DurableContext) -> None:
    assert_type(ctx.step("fetch", fetch, "x"), Coroutine[Any, Any, list[int]])  # type: ignore[unused-coroutine]
    assert_type(await ctx.step("fetch", fetch, "x"), list[int])
    assert_type(await ctx.step_recorded("fetch", fetch, "x"), StepRecord)
    async with ctx.parallel() as scope:
        one = scope.submit(fetch, "x")
        two = scope.step("fetch", fetch, "y")
    assert_type(one, Branch[list[int]])
    assert_type(await one, list[int])
    assert_type(two.result(), list[int])
    await ctx.step("fetch", fetch, 3)  # type: ignore[arg-type]
