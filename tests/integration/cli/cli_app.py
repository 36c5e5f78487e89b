"""An application whose executions come to a halt in every way, for the tests of the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from celery import Celery

from celery_durable import DurableTask, Intent, OnAmbiguous, Retry, StepDescriptor, guarded, step
from tests.support.conf import configure
from tests.support.ledger import Ledger
from tests.support.wait import eventually

__all__ = ["GatewayTimeout", "Receipt", "Switch", "app", "build"]


class GatewayTimeout(Exception):
    """Nobody knows whether the card was charged."""


class CardDeclined(Exception):
    """Nothing was charged."""


@dataclass(frozen=True)
class Receipt:
    """What a charge returns: no plain JSON."""

    id: str
    total: Decimal


class Switch:
    """What the test wants to happen; only for bodies that run in the test's own process."""

    #: How the body of ``changing`` is written at the moment.
    version = "a"
    #: Whether ``named`` times out.
    down = False


def witness(name: str, **fields: Any) -> int:
    """Record an effect; how often it has happened now."""
    if Ledger.ENV not in os.environ:
        return 0
    ledger = Ledger.from_env()
    ledger.fire(name, **fields)
    return ledger.count(name, **fields)


@step
def load(order: int) -> dict[str, Any]:
    witness("load", order=order)
    return {"order": order, "card": "4111"}


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, definite=CardDeclined))
def charge(order: int, card: str) -> Receipt:
    if witness("charge", order=order) <= 1:
        raise GatewayTimeout("no answer for card 4111")
    return Receipt(f"r{order}", Decimal("9.99"))


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN))
def pay(order: int, at: str) -> str:
    witness("pay", order=order)
    return f"paid {order} at {at}"


def release(receipt: str, order: int) -> None:
    witness("release", order=order)


@step(effect=guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN), compensate=release)
def reserve(order: int) -> str:
    witness("reserve", order=order)
    return "a seat"


NAMED = StepDescriptor.guarded(
    "named", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, key=lambda order: f"order-{order}"
)
TRIED = StepDescriptor.idempotent("tried", retry=Retry(max_attempts=2, backoff=0.0))


def named(order: int) -> str:
    witness("named", order=order)
    if Switch.down:
        raise GatewayTimeout("no answer")
    return "named"


def _second_time() -> str:
    if witness("after") == 1:
        raise ValueError("not yet")
    return "done"


def _wait() -> None:
    witness("slow")
    eventually(lambda: Ledger.from_env().count("go on"), 60)


def _fail() -> Any:
    raise GatewayTimeout("no answer")


def build(*confs: Mapping[str, Any], **settings: Any) -> Celery:
    """The application with these settings."""
    made = Celery("clitest", set_as_current=False)
    for conf in confs:
        made.conf.update(conf)
    made.conf.update(settings)
    _add_tasks(made)
    return made


def _add_tasks(app: Celery) -> None:
    def task(**options: Any) -> Any:
        return app.task(base=DurableTask, bind=True, shared=False, **options)

    @task(name="order")
    def order(self: Any, number: int) -> list[str]:
        loaded = load(number)
        receipt = charge(number, loaded["card"])
        # An AttributeError where the receipt came back as anything else.
        return [receipt.id, str(receipt.total + 1)]

    @task(name="journey")
    def journey(self: Any, number: int) -> str:
        """Reserves something that can be given back, and then nobody knows whether it has paid."""
        reserve(number)
        return charge(number, "4111").id

    @task(name="retried_order", autoretry_for=(Exception,), retry_backoff=30, max_retries=3)
    def retried_order(self: Any, number: int) -> str:
        return charge(number, "4111").id

    @task(name="pair")
    def pair(self: Any, first: int, second: int) -> list[str]:
        with self.durable.parallel() as branches:
            branches.step("hello", str, first)
            receipts = [branches.submit(charge, number, "4111") for number in (first, second)]
        return [r.result().id for r in receipts]

    @task(name="several")
    def several(self: Any) -> str:
        """Steps of every kind."""
        assert self.durable.patched("greeting")
        self.durable.step("hello", str.upper, "secret word")
        tries: list[int] = []

        def twice(word: str) -> str:
            tries.append(1)
            if len(tries) == 1:
                raise ConnectionError("password=hunter2")
            return word

        self.durable.step(TRIED, twice, "x")
        try:
            self.durable.step("broken", int, "no number")
        except ValueError:
            pass
        with self.durable.parallel() as branches:
            branches.step("left", len, "ab")
            branches.step("right", len, "abc")
        self.durable.step("bye", str.lower, "BYE")
        return "the secret result"

    @task(name="failing")
    def failing(self: Any) -> None:
        self.durable.step("hello", str, 1)
        raise ValueError("the secret message")

    @task(name="changing")
    def changing(self: Any, number: int) -> str:
        """Pays with an argument that drifts, in a body that changes."""
        if Switch.version == "a":
            self.durable.step("first", str, 1)
            pay(number, "noon")
            raise RuntimeError("stop here, in the first version")
        self.durable.step(f"first-{Switch.version}", str, 1)
        return pay(number, "evening")

    @task(name="holder")
    def holder(self: Any, number: int) -> str:
        return self.durable.step(NAMED, named, number)

    @task(name="many")
    def many(self: Any, number: int) -> None:
        for each in range(number):
            self.durable.step("each", str, each)

    @task(name="nothing")
    def nothing(self: Any, number: int = 0) -> int:
        self.durable.step("hello", str, number)
        return number

    @task(name="flaky")
    def flaky(self: Any, number: int) -> str:
        self.durable.step("before", witness, "before")
        return self.durable.step("after", _second_time)

    @task(name="slow")
    def slow(self: Any) -> None:
        """Waits inside a step until the test says so."""
        self.durable.step("wait", _wait)
        charge(8, "4111")

    @task(name="inline")
    def inline(self: Any) -> str:
        what = StepDescriptor.guarded("send", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)
        return f"a {type(self.durable.step(what, _fail)).__name__}"

    @app.task(name="total", shared=False)
    def total(results: list[Any]) -> int:
        return len(results)


app = configure(build())
