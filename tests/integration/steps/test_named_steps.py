"""A name for a step function takes the place of its own, and of nothing else: guard, policy, retries and undo stay."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from celery_durable import (
    AmbiguousEffect,
    ConfigurationError,
    DurableContext,
    DurableTask,
    Effect,
    Intent,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    current_step,
    get,
    guarded,
    step,
    transactional,
)
from tests.support.lab import Crash, Lab

FAIL = guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)


class Cards:
    """A step function, and one that is a method; the process dies within each as long as ``dies``."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.dies = True

        @step(effect=FAIL)
        def charge(order: int, part: str) -> str:
            return self.fire(order, part)

        @step(effect=FAIL)
        async def charge_later(order: int, part: str) -> str:
            await asyncio.sleep(0)
            return self.fire(order, part)

        self.charge, self.charge_later = charge, charge_later

    def fire(self, order: int, part: str) -> str:
        self.lab.ledger.fire("charge", args=[order, part])
        if self.dies:
            raise Crash
        return "ok"

    @step(effect=FAIL)
    def by_method(self, order: int, part: str) -> str:
        return self.fire(order, part)


def forms(cards: Cards) -> dict[str, Callable[[DurableContext], Any]]:
    """All ways to name a step function where it is called."""

    def in_branch(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            branch = branches.step("deposit", cards.charge, 1, "deposit")
        return branch.result()

    async def awaited(ctx: DurableContext) -> Any:
        return await ctx.step("deposit", cards.charge_later, 1, "deposit")

    async def in_async_branch(ctx: DurableContext) -> Any:
        async with ctx.parallel() as branches:
            branch = branches.step("deposit", cards.charge_later, 1, "deposit")
        return branch.result()

    return {
        "step": lambda ctx: ctx.step("deposit", cards.charge, 1, "deposit"),
        "step_recorded": lambda ctx: ctx.step_recorded("deposit", cards.charge, 1, "deposit").value,
        "branch": in_branch,
        "awaited": awaited,
        "async branch": in_async_branch,
        "partial": lambda ctx: ctx.step("deposit", functools.partial(cards.charge, 1, part="deposit")),
        "map": lambda ctx: ctx.map(lambda part: ctx.step("deposit", cards.charge, 1, part), ["deposit"])[0],
    }


@pytest.mark.parametrize("form", forms(Cards.__new__(Cards)))
def test_a_guard_is_kept_under_another_name(lab: Lab, form: str) -> None:
    cards = Cards(lab)
    body = forms(cards)[form]
    lab.crash(body)
    cards.dies = False
    reason = lab.parks(body)
    assert "guarded step 'deposit'" in reason
    assert lab.ledger.count("charge") == 1
    [found] = [s for s in get("one", app=lab.app).steps() if s.name == "deposit"]
    assert found.effect is Effect.EXACTLY_ONCE_GUARDED


def test_a_method_keeps_its_guard_too(lab: Lab) -> None:
    cards = Cards(lab)
    descriptor = StepDescriptor.guarded(
        "deposit", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, fingerprint=lambda self, *args: args
    )
    body = lambda ctx: ctx.step(descriptor, cards.by_method, 1, "deposit")  # noqa: E731
    lab.crash(body)
    cards.dies = False
    assert "guarded step 'deposit'" in lab.parks(body)
    assert lab.ledger.count("charge") == 1


def test_everything_else_is_kept_too(lab: Lab) -> None:
    """Policy, assumed value, definite errors, retries, fingerprint, key and compensation."""
    undone = lab.operation("undo")
    tries: list[int] = []

    @step(
        effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, definite=(LookupError,)),
        retry=Retry(max_attempts=3, backoff=0),
        fingerprint=lambda order, connection: order,
        key=lambda order, connection: f"order-{order}",
        compensate=lambda result, order, connection: undone(result, order),
    )
    def charge(order: int, connection: object) -> str:
        tries.append(current_step().attempt)
        if len(tries) < 3:
            raise LookupError
        return "receipt"

    def body(ctx: DurableContext) -> None:
        ctx.step("deposit", charge, 1, object())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lab.run(body)
    assert tries == [1, 2, 3]
    assert [(e["name"], e["args"]) for e in lab.ledger.entries()] == [("undo", ["receipt", 1])]
    # One operation of that key=, whoever asks for it.
    lab.run(lambda ctx: ctx.step("deposit", charge, 1, object()), id="two")
    assert tries == [1, 2, 3]


def test_an_assumed_value_is_kept(lab: Lab) -> None:
    dies = [True]

    @step(effect=guarded(Intent.COST_BEARING, assumed="assumed"))
    def draw(number: int) -> str:
        if dies:
            raise Crash
        return "drawn"

    body = lambda ctx: ctx.step("picture", draw, 1)  # noqa: E731
    lab.crash(body)
    dies.clear()
    assert lab.run(body) == "assumed"


def test_a_transaction_is_kept(lab: Lab) -> None:
    @step(effect=transactional())
    def write(connection: Connection, number: int) -> int:
        return connection.execute(text("select 1")).scalar_one() + number

    def body(ctx: DurableContext) -> Any:
        return [ctx.step("one", write, 1), ctx.transaction("two", write, 2), ctx.transaction(write, 3)]

    assert lab.run(body) == [2, 3, 4]
    assert [(s.name, s.effect) for s in get("one", app=lab.app).steps()] == [
        (name, Effect.TRANSACTIONAL) for name in ("one", "two", "write")
    ]


def test_a_transaction_keeps_what_a_plain_step_function_says(lab: Lab) -> None:
    undone = lab.operation("undo")

    @step(compensate=lambda result, *args: undone(result, *args[1:]))
    def write(connection: Connection, number: int) -> int:
        return number

    def body(ctx: DurableContext) -> None:
        ctx.transaction("row", write, 7)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lab.run(body)
    assert lab.ledger.names() == ["undo"]


@pytest.mark.parametrize(
    "form",
    [
        lambda ctx, op: ctx.step(StepDescriptor.idempotent("deposit"), op, 1, "deposit"),
        lambda ctx, op: ctx.step_recorded(StepDescriptor.at_least_once("deposit"), op, 1, "deposit"),
        lambda ctx, op: ctx.transaction("deposit", op, 1, "deposit"),
        lambda ctx, op: ctx.transaction(op, 1, "deposit"),
    ],
)
def test_a_descriptor_that_would_take_a_guard_away_is_refused(lab: Lab, form: Callable[..., Any]) -> None:
    cards = Cards(lab)
    cards.dies = False
    with pytest.raises(ConfigurationError, match="the step 'charge', which is guarded"):
        lab.run(lambda ctx: form(ctx, cards.charge))
    assert lab.ledger.count("charge") == 0


def test_the_plain_function_of_a_step_is_a_plain_function(lab: Lab) -> None:
    cards = Cards(lab)
    cards.dies = False
    assert lab.run(lambda ctx: ctx.step("deposit", cards.charge.operation, 1, "deposit")) == "ok"
    [found] = get("one", app=lab.app).steps()
    assert found.effect is Effect.IDEMPOTENT


def test_in_a_direct_call_a_name_changes_nothing(lab: Lab) -> None:
    cards = Cards(lab)
    cards.dies = False

    def body(task: Any) -> Any:
        handle = task.durable.step_recorded("deposit", cards.charge, 1, "deposit")
        return handle.name, handle.value

    task = lab.app.task(body, base=DurableTask, bind=True, name="direct")
    assert task() == ("deposit", "ok")


def test_the_doubt_of_a_named_step_can_be_handled(lab: Lab) -> None:
    cards = Cards(lab)

    def body(ctx: DurableContext) -> str:
        try:
            return ctx.step("deposit", cards.charge, 1, "deposit")
        except AmbiguousEffect as error:
            return f"ask about {error.step}"

    lab.crash(body)
    assert lab.run(body) == "ask about deposit"
