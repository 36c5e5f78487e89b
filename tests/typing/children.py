"""What a type checker knows of child tasks and of ``map``. Only mypy runs this file."""

from __future__ import annotations

from typing import Any

from celery import Celery, chain, group
from typing_extensions import assert_type

from celery_durable import ChildCancelled, ChildFailed, ChildTimeout, DurableContext, DurableError, DurableTask

app = Celery("shop", task_cls=DurableTask)


@app.task(base=DurableTask)
def ship(order_id: int) -> str:
    return str(order_id)


def body(ctx: DurableContext) -> None:
    assert_type(ctx.call(ship.s(1)), Any)
    assert_type(ctx.call(chain(ship.s(1), ship.s()), timeout=60, name="ship twice"), Any)
    assert_type(ctx.call(group(ship.s(1))), Any)
    assert_type(ctx.gather(ship.s(1), ship.s(2), until="first", tolerate=1, concurrency=2, timeout=3.5), Any)
    ctx.gather(ship.s(1), until=1)
    ctx.gather(ship.s(1), until="last")  # type: ignore[arg-type]
    ctx.call("ship")  # type: ignore[arg-type]
    assert_type(ctx.map(str, [1, 2]), list[str])
    assert_type(ctx.map(one, range(3), concurrency=2), list[str])
    failed: list[ChildFailed] = [ChildTimeout(""), ChildCancelled("")]
    errors: list[DurableError] = [*failed]
    assert errors


def one(number: int) -> str:
    return str(number)


async def coroutine(ctx: DurableContext) -> None:
    async def each(number: int) -> str:
        return str(number)

    assert_type(await ctx.map(each, [1]), list[str])
    await ctx.gather(ship.s(1))
