"""The project's durable tasks: one for each thing that a test may do."""

from __future__ import annotations

import asyncio
from typing import Any

from django.db import connection
from sqlalchemy.orm import Session

from celery_durable import DurableTask, Intent, OnAmbiguous, current_step, enqueue, guarded, step, transactional

from ..celery import app
from .models import Approval, Order

#: What the gateway has charged, in this process.
charged: list[int] = []
undone: list[int] = []


@step(effect=transactional(using="default"))
def create_order(number: int) -> int:
    Order.objects.create(number=number)
    return number


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
def charge(number: int) -> str:
    charged.append(number)
    return f"receipt of {number}"


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN), key=lambda number: f"ticket-{number}")
def book_ticket(number: int) -> str:
    charged.append(number)
    return current_step().idempotency_key.hex()


@step
def look(number: int) -> bool:
    return Order.objects.filter(number=number).exists()


@app.task(base=DurableTask, bind=True, name="fulfil")
def fulfil(self: Any, number: int) -> list[Any]:
    """Plain, transactional and guarded steps, and an order that the test made."""
    before = look(number)
    create_order(number + 1000)
    receipt = charge(number)
    self.durable.sleep(0.01)
    self.durable.transaction("note", _note, number)
    return [before, look(number + 1000), receipt]


def _note(session: Session, number: int) -> None:
    from sqlalchemy import text

    session.execute(text("UPDATE shop_order SET note = 'noted' WHERE number = :number"), {"number": number})


@app.task(base=DurableTask, name="ticket")
def ticket(number: int) -> str:
    return book_ticket(number)


def pay_back(receipt: str, number: int) -> None:
    undone.append(number)


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL), compensate=pay_back)
def pay(number: int) -> str:
    charged.append(number)
    return f"receipt of {number}"


@app.task(base=DurableTask, bind=True, name="saga")
def saga(self: Any, number: int) -> None:
    create_order(number)
    pay(number)
    raise LookupError("nothing left")


@app.task(base=DurableTask, bind=True, name="branches")
def branches(self: Any, numbers: list[int]) -> list[str]:
    with self.durable.parallel() as scope:
        made = [scope.submit(charge, number) for number in numbers]
        scope.submit(create_order, len(numbers))
    return [branch.result() for branch in made]


@app.task(base=DurableTask, bind=True, name="asynchronous")
async def asynchronous(self: Any, number: int) -> list[Any]:
    first = create_order(number)
    await asyncio.sleep(0)
    receipt = charge(number)
    await self.durable.sleep(0.01)
    return [first, create_order(number + 1), receipt]


@app.task(base=DurableTask, bind=True, name="approval")
def approval(self: Any) -> Any:
    promise = self.durable.promise("approval")
    self.durable.step("ask", _ask, promise.id, promise.token)
    return self.durable.wait(promise)


#: Called with the approval that a body waits for.
approve: list[Any] = []


def _ask(promise: str, token: str) -> None:
    made = Approval.objects.create(promise=promise, token=token)
    for function in approve:
        function(made)


@app.task(base=DurableTask, name="ordering")
def ordering(number: int) -> None:
    order_and_send(number)


@step(effect=transactional(using="default"))
def order_and_send(number: int) -> None:
    Order.objects.create(number=number)
    enqueue(connection, fulfil, (number,))


class Killed(BaseException):
    """Ends a body where it stands, as the death of its process does."""


#: Whether the body is as it was before a deploy.
old_body: list[bool] = []


@app.task(base=DurableTask, bind=True, name="changing")
def changing(self: Any, number: int) -> str:
    """Asks for another step than it did before a deploy, and would create its order a second time."""
    self.durable.step("old" if old_body else "new", int, 1)
    create_order(number)
    receipt = charge(number)
    if old_body:
        raise Killed
    return receipt
