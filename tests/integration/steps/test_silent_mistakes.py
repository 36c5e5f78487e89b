"""Mistakes that would go unnoticed until a crash: each is an error, or said in the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import celery_durable
from celery_durable import (
    ConfigurationError,
    DurableContext,
    Effect,
    Intent,
    OnAmbiguous,
    State,
    StepDescriptor,
    WrongState,
    guarded,
    step,
)
from celery_durable.steps import bodies, closures
from tests.support.commands import run as run_command
from tests.support.lab import Crash, Lab

RERUN = guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)


@pytest.fixture(autouse=True)
def anew(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is said once is said once a test, and is heard whatever level others have set in this process."""
    caplog.set_level(logging.WARNING, logger="celery_durable")
    bodies._warned.clear()
    closures._warned.clear()
    yield
    assert not bodies.running


@step(effect=RERUN)
def charge(order: int) -> int:
    return order


@step
def look(order: int) -> int:
    return order


# -- threads ------------------------------------------------------------------------------------------------------


def in_threads(function: Any) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, [1, 2]))


def test_a_guarded_step_in_a_thread_of_the_bodys_own_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match=r"step 'charge' was called in thread .* while the body of one runs"):
        lab.run(lambda ctx: in_threads(charge))
    assert lab.state() is State.FAILED


def test_one_with_something_to_undo_is_refused_too(lab: Lab) -> None:
    booked = step(compensate=lambda result, order: None)(lambda order: order)
    with pytest.raises(ConfigurationError, match="their calls are not journaled"):
        lab.run(lambda ctx: in_threads(booked))


def test_a_harmless_one_is_warned_of_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert lab.run(lambda ctx: in_threads(look)) == [1, 2]
    said = [r.getMessage() for r in caplog.records if r.name == "celery_durable.steps.bodies"]
    assert len(said) == 1
    assert said[0].startswith("step 'look' was called in thread")


def test_the_ways_that_know_the_body_are_journaled(lab: Lab) -> None:
    async def coroutine(ctx: DurableContext) -> Any:
        return await asyncio.to_thread(charge, 5)

    def branches(ctx: DurableContext) -> Any:
        return ctx.map(charge, [1, 2])

    assert lab.run(branches) == [1, 2]
    assert lab.run(coroutine, id="two") == 5
    assert [s.name for s in celery_durable.get("one", lab.app).steps()] == ["charge", "charge"]
    assert [s.name for s in celery_durable.get("two", lab.app).steps()] == ["charge"]


def test_elsewhere_a_step_function_is_the_plain_one(lab: Lab) -> None:
    """Without a body, in a thread that was there before it, for the plain function itself, and in another task."""
    assert in_threads(charge) == [1, 2]
    asked, answered = threading.Event(), []

    def older() -> None:
        asked.wait(60)
        answered.append(charge(7))

    thread = threading.Thread(target=older)
    thread.start()

    def body(ctx: DurableContext) -> Any:
        asked.set()
        thread.join(60)
        return in_threads(charge.operation)

    assert lab.run(body) == [1, 2]
    assert answered == [7]

    def plain(order: int) -> int:
        return charge(order)

    task = lab.app.task(plain, name="plain", shared=False)
    assert lab.run(lambda ctx: in_threads(lambda order: task.apply((order,)).result), id="two") == [1, 2]


# -- coroutines ---------------------------------------------------------------------------------------------------


@step
async def fetch(number: int) -> int:
    return number


@pytest.mark.parametrize("form", ["in a coroutine", "in a plain body", "named", "as a task"])
def test_a_step_that_is_never_awaited_is_named(lab: Lab, form: str) -> None:
    async def coroutine(ctx: DurableContext) -> int:
        await fetch(1)
        fetch(2)
        return 3

    def plain(ctx: DurableContext) -> int:
        look(1)
        fetch(2)  # type: ignore[unused-coroutine]
        return 3

    async def named(ctx: DurableContext) -> int:
        await fetch(1)
        ctx.step("fetch", fetch, 2)
        return 3

    async def task(ctx: DurableContext) -> int:
        await fetch(1)
        ctx.kept = asyncio.ensure_future(fetch(2))  # type: ignore[attr-defined]
        return 3

    body = {"in a coroutine": coroutine, "in a plain body": plain, "named": named, "as a task": task}[form]
    if form == "as a task":
        # It is cancelled with the body's loop, before it has begun: that is asyncio's way, and nothing ran.
        assert lab.run(body) == 3
        return
    with pytest.raises(ConfigurationError, match=r"step 'fetch' \(position 1\) of execution one is a coroutine"):
        lab.run(body)
    assert lab.state() is State.FAILED


def test_one_that_was_cancelled_before_it_began_was_not_forgotten(lab: Lab) -> None:
    async def body(ctx: DurableContext) -> str:
        later = asyncio.ensure_future(fetch(1))
        later.cancel()
        await asyncio.wait([later])
        return "done"

    assert lab.run(body) == "done"


# -- closures -----------------------------------------------------------------------------------------------------


def said_of_closures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == "celery_durable.steps.closures" and r.levelno == logging.WARNING
    ]


def test_a_guarded_step_that_takes_values_from_around_it_is_warned_of(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)

    def body(ctx: DurableContext) -> Any:
        amount, client = 10, lab
        return [ctx.step(pay, lambda: (amount, client) and amount) for _ in range(2)]

    lab.run(body)
    [said] = said_of_closures(caplog)
    assert said.startswith("guarded step 'pay' uses 'amount' from the code around it. A replay does not compare that")


def test_a_decorated_one_is_too(caplog: pytest.LogCaptureFixture) -> None:
    amount = 10

    @step(effect=RERUN)
    def pay() -> int:
        return amount

    assert len(said_of_closures(caplog)) == 1
    assert pay() == 10


def test_what_depends_on_nothing_around_it_is_not(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    amount = 10
    ctx_step = StepDescriptor("look", Effect.IDEMPOTENT)
    identified = StepDescriptor.guarded(
        "pay", Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN, fingerprint=lambda: amount
    )
    given = StepDescriptor.guarded("given", Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN)

    def body(ctx: DurableContext) -> None:
        ctx.step(ctx_step, lambda: amount)
        ctx.step(identified, lambda: amount)
        ctx.step(given, lambda value: lab.ledger and value, amount)

    lab.run(body)
    assert said_of_closures(caplog) == []


# -- eager executions that broke off ------------------------------------------------------------------------------


@pytest.mark.parametrize("saga", [False, True], ids=["", "with something to undo"])
def test_an_eager_execution_that_broke_off_says_how_it_goes_on(
    lab: Lab, saga: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hotel = StepDescriptor("hotel", compensate=lab.operation("undo") if saga else None)
    dies = [True]

    def body(ctx: DurableContext) -> str:
        ctx.step(hotel, lab.operation("hotel"))
        if dies:
            raise Crash
        return "done"

    how = r"It ran eagerly: nothing brings it back by itself. .* called again like this: apply\(..., task_id='one'\)"
    lab.crash(body)
    handle = celery_durable.get("one", lab.app)
    with pytest.raises(WrongState, match=how):
        handle.resume()
    assert "again like this: apply(..., task_id='one')" in run_command(lab.app, "resume", "one", fails=1).err
    dies.clear()
    if not saga:
        handle.cancel()
        assert lab.state() is State.CANCELLED
        return
    shown = run_command(lab.app, "cancel", "one")
    assert "its effects are to be undone. It ran eagerly" in shown.out
    assert lab.state() is State.PENDING
    lab.parks(body)  # called again, it is undone, and has no outcome
    assert lab.ledger.names() == ["hotel", "undo"]
    assert lab.state() is State.CANCELLED
