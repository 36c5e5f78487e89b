"""``async def`` steps and bodies: the same rules, the same journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celery_durable import (
    DID_NOT_HAPPEN,
    ConfigurationError,
    DurableContext,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    current_step,
    get_logger,
    guarded,
    step,
)
from celery_durable.effects import Happened, Intent
from celery_durable.store.records import State
from tests.integration.charging import Timeout, charging
from tests.support.lab import Crash, Lab, everywhere

log = get_logger("tests.async")


def slowly(op: Any) -> Any:
    """The same operation as a coroutine function."""

    async def operate(*args: Any) -> Any:
        await asyncio.sleep(0)
        return op(*args)

    return operate


@step
async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@step(effect=guarded(Intent.COST_BEARING))
async def mail(text: str) -> None:
    await asyncio.sleep(0)


@everywhere
def test_an_async_body_resumes_like_any_other(lab: Lab) -> None:
    op, last = slowly(lab.operation("fetch", "page")), slowly(lab.operation("last", "end", Crash()))

    async def body(ctx: DurableContext) -> list[Any]:
        found = [await ctx.step("fetch", op, 1), await double(4), ctx.step("plain", str, 5)]
        await mail("hello")
        return [*found, await ctx.step("last", last)]

    lab.crash(body)
    assert lab.run(body) == ["page", 8, "5", "end"]
    assert (lab.ledger.count("fetch"), lab.ledger.count("last")) == (1, 2)
    names = ["0 RESULT fetch", "1 RESULT double", "2 RESULT plain", "3 INTENT mail", "3 RESULT mail", "4 RESULT last"]
    assert lab.entries() == names


def test_an_async_task_is_declared_like_any_other(lab: Lab) -> None:
    async def body(self: Any, number: int) -> int:
        if self.request.retries < 2:
            raise ValueError
        return await double(number)

    assert lab.apply(lab.task("asynchronous", body, autoretry_for=(ValueError,), retry_backoff=False), 4) == 8


def test_gathered_steps_stand_in_the_order_of_their_calls(lab: Lab) -> None:
    """Whatever order they end in."""
    count = 0

    async def body(ctx: DurableContext) -> list[int]:
        nonlocal count
        count += 1
        turns = [asyncio.Event() for _ in range(3)]
        turns[2].set()

        async def op(number: int) -> int:
            lab.ledger.fire("fetch", number=number)
            await turns[number].wait()
            if number:
                turns[number - 1].set()
            return number

        found = await asyncio.gather(*(ctx.step("fetch", op, number) for number in range(3)))
        if count == 1:
            raise Crash
        return list(found)

    lab.crash(body)
    assert lab.run(body) == [0, 1, 2]
    assert lab.ledger.count("fetch") == 3
    assert [row.position for row in lab.rows()] == [0, 1, 2]
    payloads = [lab.runtime.codec.decode(row.codec, row.payload, "") for row in lab.rows()]
    assert payloads == [0, 1, 2]


def test_branches_of_an_async_scope_are_coroutines(lab: Lab) -> None:
    op = slowly(lab.operation("fetch", "page"))

    async def branch(ctx: DurableContext, number: int) -> Any:
        await ctx.step("first", op, number)
        return await ctx.step("second", op, number)

    async def body(ctx: DurableContext) -> list[Any]:
        async with ctx.parallel() as branches:
            made = [branches.submit(branch, ctx, number) for number in range(2)]
            made.append(branches.submit(double, 3))
            made.append(branches.step("inline", op))
            first = await made[0]
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash
        return [first, *[one.result() for one in made]]

    lab.crash(body)
    assert lab.run(body) == ["page", "page", "page", 6, "page"]
    assert lab.ledger.count("fetch") == 5
    assert lab.entries()[2:] == [
        "0.0/0 RESULT first",
        "0.0/1 RESULT second",
        "0.1/0 RESULT first",
        "0.1/1 RESULT second",
        "0.2/0 RESULT double",
        "0.3/0 RESULT inline",
    ]


def test_an_error_in_an_async_branch_comes_out_of_the_scope(lab: Lab) -> None:
    async def body(ctx: DurableContext) -> None:
        async with ctx.parallel() as branches:
            branches.step("fetch", slowly(lambda: 1 / 0))

    with pytest.raises(ZeroDivisionError):
        lab.run(body)


def test_an_async_scope_takes_coroutine_functions_only(lab: Lab) -> None:
    async def body(ctx: DurableContext) -> None:
        async with ctx.parallel() as branches:
            branches.submit(len, "")

    with pytest.raises(ConfigurationError, match="a branch of an 'async with' scope is a coroutine function"):
        lab.run(body)


def test_a_plain_scope_works_in_an_async_body(lab: Lab) -> None:
    async def body(ctx: DurableContext) -> int:
        with ctx.parallel() as branches:
            branch = branches.step("len", len, "abc")
        return await branch

    assert lab.run(body) == 3


def test_an_async_step_has_its_handle_and_its_retries(lab: Lab) -> None:
    handles = []

    async def op() -> str:
        handles.append(current_step())
        await asyncio.sleep(0)
        handles.append(current_step())
        if len(handles) < 4:
            raise OSError
        return "done"

    async def body(ctx: DurableContext) -> Any:
        return (await ctx.step_recorded(StepDescriptor.idempotent("a", retry=Retry(3, backoff=0)), op)).attempt

    assert lab.run(body) == 2
    assert [handle.attempt for handle in handles] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("verdict", "value", "fired"), [(Happened("found"), "found", 1), (DID_NOT_HAPPEN, "receipt", 2)]
)
def test_a_reconcile_callable_may_be_a_coroutine_function(lab: Lab, verdict: Any, value: str, fired: int) -> None:
    async def ask(handle: Any, cents: int) -> Any:
        await asyncio.sleep(0)
        return verdict

    op = slowly(lab.operation("charge", "receipt", Crash()))

    async def body(ctx: DurableContext) -> Any:
        return await ctx.step(charging(ask), op, 5)

    lab.crash(body)
    assert lab.run(body) == value
    assert lab.ledger.count("charge") == fired


def test_lost_knowledge_parks_an_async_body(lab: Lab) -> None:
    op = slowly(lab.operation("charge", "receipt", Timeout("no answer")))

    async def body(ctx: DurableContext) -> Any:
        return await ctx.step(charging(OnAmbiguous.FAIL), op, 5)

    assert lab.parks(body).startswith("guarded step 'charge' (position 0) of execution one raised Timeout.")
    assert lab.state() is State.AMBIGUOUS


def test_a_changed_async_body_starts_anew(lab: Lab) -> None:
    async def then(ctx: DurableContext) -> None:
        await ctx.step("a", slowly(lambda: None))
        raise Crash

    async def now(ctx: DurableContext) -> str:
        await ctx.step("b", slowly(lambda: None))
        return "done"

    lab.crash(then)
    assert lab.run(now) == "done"
    assert lab.execution().generation == 2


def test_a_cancelled_coroutine_does_not_lose_what_was_done(lab: Lab) -> None:
    op = lab.operation("fetch", "page")

    async def body(ctx: DurableContext) -> str:
        await ctx.step("fetch", slowly(op))

        async def hang() -> None:
            lab.ledger.fire("hang")
            await asyncio.sleep(3600)

        try:
            await asyncio.wait_for(ctx.step("hang", hang), 0.01)
        except asyncio.TimeoutError:
            return "too slow"
        return "never"

    assert lab.run(body) == "too slow"
    assert lab.entries() == ["0 RESULT fetch", "1 ERROR hang"]
