"""A deploy that cannot read what its journals hold: the execution waits for the next one, and forgets nothing."""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, OnAmbiguous, State
from tests.integration.charging import charging
from tests.support.delivery import Delivery, Left
from tests.support.lab import Crash, Lab, everywhere

HERE = sys.modules[__name__]


class Broken(Exception):
    """The mail server is down."""


@dataclass
class Order:
    """As it was when the journal was written."""

    id: int
    total: int


class Color(enum.Enum):
    """Likewise."""

    RED = 1
    BLUE = 2


def without(name: str, *fields: str) -> Any:
    """The class of today, which lacks something."""
    made = make_dataclass(name, fields)
    made.__module__ = __name__
    return made


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts another class in the place of a name."""
    return lambda name, cls: monkeypatch.setattr(HERE, name, cls)


class Shop:
    """Loads an order, charges it, and mails; dies or fails in the mail."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.mail: BaseException | None = Crash()
        self.charge = charging(OnAmbiguous.FAIL, compensate=lab.operation("refund"))

    def load(self) -> Any:
        self.lab.ledger.fire("load")
        return Order(1, 5)

    def __call__(self, ctx: DurableContext) -> str:
        ctx.step("load", self.load)
        ctx.step(self.charge, self.lab.operation("charge", "receipt"), 1)
        ctx.step("mail", self.lab.operation("mail", None, self.mail))
        return "done"


@everywhere
def test_a_result_that_cannot_be_read_any_more_waits_for_the_next_deploy(
    lab: Lab, deploy: Callable[[str, Any], None]
) -> None:
    shop = Shop(lab)
    lab.crash(shop)
    before = Order
    deploy("Order", without("Order", "id"))
    shop.mail = None
    reason = lab.parks(shop)
    assert "step 'load' (position 0)" in reason
    assert "no field 'total' any more" in reason
    assert lab.state() is State.QUARANTINED
    assert lab.parked[-1][:2] == ("one", "quarantined")
    deploy("Order", before)
    celery_durable.get("one", app=lab.app).resume()
    assert lab.run(shop) == "done"
    assert [lab.ledger.count(name) for name in ("load", "charge", "refund", "mail")] == [1, 1, 0, 2]


@everywhere
def test_what_can_be_undone_still_is(lab: Lab, deploy: Callable[[str, Any], None]) -> None:
    shop = Shop(lab)
    lab.crash(shop)
    before = Order
    deploy("Order", without("Order", "id"))
    shop.mail = Broken()
    lab.parks(shop)
    handle = celery_durable.get("one", app=lab.app)
    handle.cancel("not wanted any more")  # it is to be undone, but nobody can read what there is
    assert "no field 'total' any more" in lab.parks(shop)
    assert lab.ledger.count("refund") == 0
    deploy("Order", before)
    handle.resume()
    lab.parks(shop)  # left without an outcome, as a cancelled one is
    assert lab.state() is State.CANCELLED
    assert [lab.ledger.count(name) for name in ("load", "charge", "refund")] == [1, 1, 1]


@pytest.mark.parametrize("way", ["branch", "gather", "error handled", "bare"])
def test_whatever_the_body_does_with_it(lab: Lab, deploy: Callable[[str, Any], None], way: str) -> None:
    """It is left at once: not even a bare except lets it go on."""
    dies = [True]
    color = lambda: Color.RED  # noqa: E731

    def branch(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.step("color", color)
            branches.step("size", lambda: 5)

    async def gather(ctx: DurableContext) -> None:
        async def later() -> Color:
            return Color.RED

        await asyncio.gather(ctx.step("color", later), ctx.step("other", later))

    def handled(ctx: DurableContext) -> None:
        try:
            ctx.step("color", color)
        except Exception:
            ctx.step("instead", lab.operation("instead"))

    def bare(ctx: DurableContext) -> None:
        try:
            ctx.step("color", color)
        except:  # noqa: E722
            pass

    part = {"branch": branch, "gather": gather, "error handled": handled, "bare": bare}[way]

    def body(ctx: DurableContext) -> Any:
        if way == "gather":

            async def whole() -> None:
                await gather(ctx)
                await ctx.step("end", asyncio.sleep, 0)
                if dies:
                    raise Crash

            return whole()
        part(ctx)
        ctx.step("end", lab.operation("end"))
        if dies:
            raise Crash
        return None

    lab.crash(body)
    dies.clear()
    deploy("Color", enum.Enum("Color", {"BLUE": 2}, module=__name__))
    assert "has no member 'RED' any more" in lab.parks(body)
    assert lab.ledger.count("instead") == 0


def test_a_guarded_result_that_cannot_be_read_is_not_asked_for_again(
    lab: Lab, deploy: Callable[[str, Any], None]
) -> None:
    charge = charging(OnAmbiguous.RERUN)
    dies = [True]

    def pay() -> Any:
        lab.ledger.fire("charge")
        return Color.RED

    def body(ctx: DurableContext) -> None:
        ctx.step(charge, pay)
        if dies:
            raise Crash

    lab.crash(body)
    dies.clear()
    deploy("Color", enum.Enum("Color", {"BLUE": 2}, module=__name__))
    lab.parks(body)
    assert lab.ledger.count("charge") == 1


def test_a_limit_that_was_lowered_is_no_failure_either(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    dies = [True]

    def body(ctx: DurableContext) -> int:
        found = ctx.step("load", lambda: "x" * 1000)
        if dies:
            raise Crash
        return len(found)

    lab.crash(body)
    dies.clear()
    lab.runtime.codec.max_payload_bytes = 100
    assert "durable_max_payload_bytes" in lab.parks(body)
    lab.runtime.codec.max_payload_bytes = 10_000
    celery_durable.get("one", app=lab.app).resume()
    assert lab.run(body) == 1000


def test_what_cannot_be_stored_is_an_error_of_the_step_as_before(lab: Lab) -> None:
    with pytest.raises(celery_durable.PayloadError, match="the result of step 'load'"):
        lab.run(lambda ctx: ctx.step("load", object))
    assert lab.state() is State.FAILED


def test_an_outcome_that_cannot_be_read_is_told_to_celery_when_it_can_be(
    lab: Lab, deliver: Delivery, deploy: Callable[[str, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker died between the outcome and Celery's hearing of it: the execution did not fail."""
    deliver(lambda ctx: Color.RED)
    before = Color
    deploy("Color", enum.Enum("Color", {"BLUE": 2}, module=__name__))
    with pytest.raises(Left):
        deliver(lambda ctx: None)
    assert lab.state() is State.COMPLETED
    deploy("Color", before)
    assert deliver(lambda ctx: None) is Color.RED
