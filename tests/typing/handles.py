"""What a type checker knows of calls with a ``durable_id`` and of handles. Only mypy runs this file."""

from __future__ import annotations

import datetime as dt
from typing import Any

from celery import Celery, chain
from celery.result import AsyncResult, EagerResult
from typing_extensions import assert_type

import celery_durable
from celery_durable import DurableTask, Effect, ExecutionHandle, ExecutionStatus, State, StepInfo, StepOutcome, get
from celery_durable.messaging.signature import DurableSignature

app = Celery("shop", task_cls=DurableTask)


@app.task(base=DurableTask)
def fulfil(order_id: int) -> int:
    return order_id


# -- calls ------------------------------------------------------------------------------------------------------

assert_type(fulfil.apply_async((1,), durable_id="order-1"), AsyncResult[Any])
assert_type(fulfil.apply_async([1], {"x": 1}, durable_id="order-1", countdown=3, queue="q"), AsyncResult[Any])
assert_type(fulfil.apply((1,), durable_id="order-1"), EagerResult[Any])
assert_type(fulfil.s(1).set(durable_id="order-1"), DurableSignature)
assert_type(fulfil.si(1).set(countdown=3, durable_id="order-1").delay(), AsyncResult[Any])
assert_type(fulfil.signature((1,), durable_id="order-1"), DurableSignature)
chain(fulfil.s(1).set(durable_id="order-1"), fulfil.s())
fulfil.apply_async((1,), durable_id=1)  # type: ignore[arg-type]
fulfil.apply((1,), durable_id=b"order-1")  # type: ignore[arg-type]


# -- handles ----------------------------------------------------------------------------------------------------

handle = get("order-1")
assert_type(handle, ExecutionHandle)
assert_type(celery_durable.get("order-1", app), ExecutionHandle)
assert_type(handle.id, str)
assert_type(handle.result(), Any)
assert_type(handle.result(timeout=1.5), Any)
assert_type(handle.rerun("ship"), ExecutionHandle)
assert_type(handle.rerun(3, durable_id="order-2", callbacks=False), ExecutionHandle)
handle.cancel("a reason")
handle.resume()
get(1)  # type: ignore[arg-type]
handle.id = "other"  # type: ignore[misc]
handle.rerun(b"ship")  # type: ignore[arg-type]
handle.rerun("ship", "order-2")  # type: ignore[call-arg]
handle.result(timeout="1")  # type: ignore[arg-type]

status = handle.status()
assert_type(status, ExecutionStatus)
assert_type(status.state, State)
assert_type((status.created_at, status.wakes_at), tuple[dt.datetime, dt.datetime | None])
assert_type((status.finished, status.parked, status.reason), tuple[bool, bool, str | None])

step = handle.steps()[0]
assert_type(step, StepInfo)
assert_type((step.effect, step.outcome, step.key), tuple[Effect | None, StepOutcome, bytes | None])
assert_type(step.value(), Any)
assert_type(step.error(), Exception | None)
step.outcome = StepOutcome.DONE  # type: ignore[misc]


async def coroutines() -> None:
    assert_type(await handle.aresult(timeout=3), Any)
    handle.aresult()  # type: ignore[unused-coroutine]
