"""What type checkers know of tasks that are declared with ``@durable_task``. Only mypy and pyright read this file."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from celery import Celery, Task, chain, chord, group
from celery.result import AsyncResult, EagerResult
from typing_extensions import assert_type

from celery_durable import DurableContext, DurableTask, durable_task, step
from celery_durable.messaging.signature import DurableSignature

app = Celery("shop")


@step
def load(order_id: int) -> str:
    return str(order_id)


# -- declaring --------------------------------------------------------------------------------------------------


@durable_task(app)
def ship(order_id: int, *, express: bool = False) -> str:
    return f"{order_id} {express}"


@durable_task(app, bind=True, name="fulfil", autoretry_for=(OSError,), max_retries=3)
def fulfil(self: DurableTask, order_id: int, items: list[str]) -> list[str]:
    assert_type(self.durable, DurableContext)
    return [load(order_id), *items]


@durable_task(app)
async def later(order_id: int) -> float:
    return order_id / 2


@durable_task(app, bind=True)
async def bound_later(self: DurableTask, order_id: int) -> float:
    return order_id / 2


@durable_task
def shared(order_id: int) -> bytes:
    return bytes(order_id)


@durable_task
async def shared_later(order_id: int) -> bytes:
    return bytes(order_id)


@durable_task(bind=True)
def shared_and_bound(self: DurableTask, order_id: int) -> bytes:
    return bytes(order_id)


class Ours(DurableTask):
    def greeting(self) -> str:
        return f"this is {self.name}"


@durable_task(app, bind=True, base=Ours)
def greet(self: Ours, name: str) -> str:
    return f"{self.greeting()}, {name}"


@durable_task(app, base=Ours)
def wave(name: str) -> None:
    print(name)


@durable_task(app, bind=True)
def unknown_self(self, name: str) -> int:  # type: ignore[no-untyped-def]
    return len(name)


@durable_task(app, bind=True)
def celerys_self(self: Task[Any, Any], name: str) -> int:
    return len(name)


@durable_task(app, bind=True)
def own_self(self: DurableTask[[str], int], name: str) -> int:
    return len(name)


@durable_task(app)
def callback(receipt: str, order_id: int) -> bool:
    return bool(receipt) and bool(order_id)


@durable_task(app)
def refund(request: object, error: BaseException, traceback: object, order_id: int) -> None:
    print(error)


@durable_task(app)
def nothing() -> None: ...


@durable_task(app)
def total(*prices: int) -> int:
    return sum(prices)


@durable_task(app, bind=True)  # type: ignore[arg-type]
def wrong_self(self: int, name: str) -> int:
    return self


durable_task("shop")  # type: ignore[call-overload]
durable_task(app, base=Task)  # type: ignore[arg-type]

# -- calling ----------------------------------------------------------------------------------------------------

by_its_type: DurableTask[..., str] = ship
assert_type(ship.delay(1), AsyncResult[str])
assert_type(ship.delay(order_id=1, express=True).get(), str)
assert_type(ship.apply_async((1,), durable_id="order-1"), AsyncResult[str])
assert_type(ship.apply((1,)), EagerResult[str])
assert_type(ship(1), str)
assert_type(fulfil.delay(1, ["book"]).get(), list[str])
assert_type(fulfil(1, ["book"]), list[str])
assert_type(fulfil.durable, DurableContext)
assert_type(shared.delay(1).get(), bytes)
assert_type(shared_and_bound.delay(1).get(), bytes)
assert_type(greet.delay("Ada").get(), str)
assert_type(wave.delay("Ada").get(), None)
assert_type(unknown_self.delay("Ada").get(), int)
assert_type(celerys_self.delay("Ada").get(), int)
assert_type(own_self.delay("Ada").get(), int)
assert_type(nothing.delay().get(), None)
assert_type(total.delay(1, 2, 3).get(), int)
ship.delay("1")  # type: ignore[arg-type]
ship.delay()  # type: ignore[call-arg]
ship.delay(1, True)  # type: ignore[call-arg]
ship.delay(1, expres=True)  # type: ignore[call-arg]
fulfil.delay(fulfil, 1, ["book"])  # type: ignore[call-arg, arg-type]
fulfil.delay(1)  # type: ignore[call-arg]
shared.delay(b"1")  # type: ignore[arg-type]
greet.delay(1)  # type: ignore[arg-type]
number: int = ship.delay(1).get()  # type: ignore[assignment]

# An `async def` body: Celery drives it, and a direct call gives the coroutine.
assert_type(later.delay(1).get(), float)
assert_type(bound_later.apply((1,)).get(), float)
assert_type(shared_later.delay(1).get(), bytes)
assert_type(later.s(1), DurableSignature[float])
assert_type(later(1), Coroutine[Any, Any, float])  # type: ignore[unused-coroutine]
later.delay("1")  # type: ignore[arg-type]

# -- signatures -------------------------------------------------------------------------------------------------

assert_type(ship.s(1), DurableSignature[str])
assert_type(ship.s(1, express=True).delay(), AsyncResult[str])
assert_type(ship.si(1).set(durable_id="order-1"), DurableSignature[str])
assert_type(ship.signature((1,), queue="parcels"), DurableSignature[str])
assert_type(total.s(1, 2), DurableSignature[int])
assert_type(nothing.s(), DurableSignature[None])
# What a chain, a chord or a link puts in front may be left out.
chain(ship.s(1), callback.s(7))
chain(ship.s(1), callback.s(order_id=7))
chain(ship.s(1), callback.si("receipt", 7))
chord([ship.s(1), ship.s(2)], wave.s())
group(ship.s(number) for number in range(3))
ship.apply_async((1,), link=callback.s(7), link_error=refund.s(7))
ship.s("1")  # type: ignore[call-overload]
ship.s(1, 2)  # type: ignore[call-overload]
ship.si()  # type: ignore[call-arg]
callback.s("receipt", "7")  # type: ignore[call-overload]
nothing.s(1)  # type: ignore[call-overload]


def body(ctx: DurableContext) -> None:
    assert_type(ctx.call(ship.s(1)), Any)
    ctx.gather(ship.s(1), later.s(2))
    ctx.call(ship.s("1"))  # type: ignore[call-overload]


# -- where any task will do ----------------------------------------------------------------------------------------

tasks: list[DurableTask] = [ship, fulfil, later, greet]
celerys: list[Task[..., Any]] = [ship, fulfil, later, greet]


class Fulfil(DurableTask[[int], str]):
    name = "class based"

    def run(self, order_id: int) -> str:
        return self.durable.step("load", load, order_id)


by_class = app.register_task(Fulfil())
assert_type(by_class.delay(1), AsyncResult[str])
by_class.delay("1")  # type: ignore[arg-type]
