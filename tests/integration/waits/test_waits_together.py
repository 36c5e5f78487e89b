"""Several waits at once: in branches, which are threads or coroutines, and gathered in one body."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import threading
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, Intent, OnAmbiguous, Promise, StepDescriptor
from celery_durable.store.records import State
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab, everywhere

DAY = 86_400


def resolve(lab: Lab, promise: Promise, value: Any) -> None:
    celery_durable.resolve(promise.id, promise.token, value, app=lab.app)


# -- threads ----------------------------------------------------------------------------------------------------


@everywhere
def test_a_branch_that_waits_leaves_the_others_to_go_on_and_the_scope_waits_for_all(
    lab: Lab, deliver: Delivery
) -> None:
    made: dict[str, Promise] = {}

    def asks(ctx: DurableContext) -> Any:
        made["a"] = ctx.promise("a")
        return ctx.wait(made["a"])

    def sleeps(ctx: DurableContext, days: int) -> int:
        ctx.step("before", lab.operation("before"), days)
        ctx.sleep(days * DAY)
        ctx.step("after", lab.operation("after"), days)
        return days

    def works(ctx: DurableContext) -> str:
        for number in range(20):
            ctx.step("work", lab.operation("work"), number)
        return "worked"

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel(max_workers=2) as branches:
            made_ = [branches.submit(sleeps, ctx, 3), branches.submit(asks, ctx), branches.submit(works, ctx)]
            made_ += [branches.submit(sleeps, ctx, 2)]
        return [branch.result() for branch in made_]

    deliver.suspends(body)
    # Every branch has come as far as it could, also those that had no thread at first.
    assert (lab.ledger.count("before"), lab.ledger.count("work")) == (2, 20)
    assert [e for e in lab.entries() if "SCOPE_END" in e] == []
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 2 * DAY - 60 < claims.next_ms / 1000 <= 2 * DAY
    resolve(lab, made["a"], "yes")
    deliver.suspends(body)
    deliver.elapse(2 * DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    assert lab.ledger.count("after") == 1
    deliver.elapse(DAY)
    assert deliver.resumes(body) == [3, "yes", "worked", 2]
    assert (lab.ledger.count("before"), lab.ledger.count("work"), lab.ledger.count("after")) == (2, 20, 2)


def test_nested_scopes_wait_together(lab: Lab, deliver: Delivery) -> None:
    made: list[Promise] = []

    def inner(ctx: DurableContext, days: int) -> int:
        ctx.sleep(days * DAY)
        return days

    def outer(ctx: DurableContext) -> int:
        with ctx.parallel() as branches:
            found = [branches.submit(inner, ctx, 4), branches.submit(inner, ctx, 2)]
        return sum(b.result() for b in found)

    def asks(ctx: DurableContext) -> Any:
        made.append(ctx.promise("a", timeout=3 * DAY))
        return ctx.wait(made[-1])

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            found = [branches.submit(outer, ctx), branches.submit(asks, ctx)]
        return [b.result() for b in found]

    deliver.suspends(body)
    deliver.elapse(2 * DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    resolve(lab, made[0], 5)
    deliver.suspends(body)
    deliver.elapse(2 * DAY)
    assert deliver.resumes(body) == [6, 5]


def test_the_body_itself_may_wait_while_its_branches_work(lab: Lab, deliver: Delivery) -> None:
    def works(ctx: DurableContext) -> int:
        for number in range(50):
            ctx.step("work", lab.operation("work", number), number)
        return number

    def naps(ctx: DurableContext) -> None:
        ctx.sleep(2 * DAY)

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            working, napping = branches.submit(works, ctx), branches.submit(naps, ctx)
            ctx.sleep(DAY)
            napping.result()
        return working.result()

    deliver.suspends(body)
    assert lab.ledger.count("work") == 50
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert DAY - 60 < claims.next_ms / 1000 <= DAY
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.resumes(body) == 49
    assert lab.ledger.count("work") == 50


def test_a_branch_that_swallows_the_suspension_does_nothing_more(lab: Lab, deliver: Delivery) -> None:
    def swallows(ctx: DurableContext) -> str:
        try:
            ctx.sleep(DAY)
        except BaseException:
            lab.ledger.fire("swallowed")
        try:
            ctx.step("a", lab.operation("a"))
        except BaseException as error:
            raise ValueError("does not count") from error
        return "never"

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            branch = branches.submit(swallows, ctx)
        return branch.result()

    deliver.suspends(body)
    assert lab.ledger.names() == ["swallowed"]
    assert lab.entries() == ["0 SCOPE parallel", "0.0/0 TIMER sleep"]


def test_a_body_that_swallows_the_suspension_after_a_scope_is_suspended_all_the_same(
    lab: Lab, deliver: Delivery
) -> None:
    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.step("a", len, "")
        try:
            ctx.sleep(DAY)
        except BaseException:
            raise ValueError("does not count") from None

    deliver.suspends(body)


def test_a_failed_branch_does_not_wait_for_those_that_wait(lab: Lab, deliver: Delivery) -> None:
    def fails(ctx: DurableContext) -> None:
        ctx.step("op", lab.operation("op", None, ValueError("at once")))

    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.submit(ctx.sleep, DAY)
            branches.submit(fails, ctx)

    with pytest.raises(ValueError, match="at once"):
        deliver(body)
    assert lab.state() is State.FAILED


def test_an_error_of_a_branch_that_the_body_has_seen_is_journaled_when_another_waits(
    lab: Lab, deliver: Delivery
) -> None:
    op = lab.operation("op", None, ValueError("once"))

    def body(ctx: DurableContext) -> Any:
        seen = ""
        with ctx.parallel() as branches:
            branches.submit(ctx.sleep, DAY)
            failing = branches.step("op", op)
            try:
                failing.result()
            except ValueError as error:
                seen = str(error)
        return seen

    deliver.suspends(body)
    assert "0.1/0 ERROR op" in lab.entries()
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "once"
    assert lab.ledger.count("op") == 1


# -- coroutines -------------------------------------------------------------------------------------------------


@everywhere
def test_gathered_waits_run_at_the_same_time_and_cut_no_step_off(lab: Lab, deliver: Delivery) -> None:
    made: list[Promise] = []
    guarded = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)

    async def charge() -> str:
        lab.ledger.fire("charge")
        await asyncio.sleep(0.1)
        lab.ledger.fire("charged")
        return "receipt"

    async def several(ctx: DurableContext) -> str:
        for _ in range(3):
            await ctx.step("some", slow)
        return "several"

    async def slow() -> None:
        await asyncio.sleep(0.02)

    async def body(ctx: DurableContext) -> Any:
        made.append(ctx.promise("a"))
        return await asyncio.gather(
            ctx.sleep(DAY), ctx.step(guarded, charge), ctx.sleep(2 * DAY), ctx.wait(made[-1]), several(ctx)
        )

    deliver.suspends(body)
    assert lab.ledger.names() == ["charge", "charged"]
    assert [e for e in lab.entries() if "RESULT some" in e] == [f"{n} RESULT some" for n in (5, 6, 7)]
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    resolve(lab, made[0], "yes")
    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.resumes(body) == [None, "receipt", None, "yes", "several"]
    assert lab.ledger.count("charge") == 1


@everywhere
def test_async_branches_wait_like_threads(lab: Lab, deliver: Delivery) -> None:
    made: dict[int, Promise] = {}

    async def branch(ctx: DurableContext, number: int) -> Any:
        await ctx.sleep(number * DAY)
        made[number] = ctx.promise("p")
        return await ctx.wait(made[number])

    async def body(ctx: DurableContext) -> Any:
        async with ctx.parallel() as branches:
            found = [branches.submit(branch, ctx, number) for number in range(3)]
            first = await found[0]
        return [first, *[b.result() for b in found[1:]]]

    deliver.suspends(body)
    assert list(made) == [0]
    for number in range(3):
        if number:
            deliver.elapse(DAY)
            lab.wake()
            assert deliver.due() == ["one"]
            deliver.suspends(body)
        resolve(lab, made[number], number * 10)
        if number < 2:
            deliver.suspends(body)
    assert deliver(body) == [0, 10, 20]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup came with Python 3.11")
def test_a_task_group_is_left_too(lab: Lab, deliver: Delivery) -> None:
    async def body(ctx: DurableContext) -> Any:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(ctx.sleep(n * DAY)) for n in (1, 2)]
        return [task.result() for task in made]

    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert DAY - 60 < claims.next_ms / 1000 <= DAY
    deliver.elapse(2 * DAY)
    assert deliver.resumes(body) == [None, None]


def test_a_task_group_in_a_branch_is_left_too(lab: Lab, deliver: Delivery) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("TaskGroup came with Python 3.11")

    async def branch(ctx: DurableContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ctx.sleep(DAY))
            tasks.create_task(ctx.sleep(2 * DAY))

    async def body(ctx: DurableContext) -> str:
        async with ctx.parallel() as branches:
            branches.submit(branch, ctx)
        return "done"

    deliver.suspends(body)
    deliver.elapse(2 * DAY)
    assert deliver.resumes(body) == "done"


def test_threads_of_an_async_body_wait_where_they_are(lab: Lab, deliver: Delivery) -> None:
    def branch(ctx: DurableContext) -> str:
        ctx.sleep(DAY)
        return "thread"

    async def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            made = branches.submit(branch, ctx)
        await ctx.sleep(DAY)
        return made.result()

    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "thread"


def test_a_wait_that_is_not_awaited_is_an_error(lab: Lab, deliver: Delivery) -> None:
    async def body(ctx: DurableContext) -> str:
        waiting = ctx.sleep(DAY)
        waiting.close()
        return "too early"

    with pytest.raises(celery_durable.ConfigurationError) as caught:
        deliver(body)
    assert caught.value.message == (
        "the sleep at position 0 of execution one was asked for in 'async def' code and never awaited, so the body did "
        "not wait. Write: await self.durable.sleep(...)"
    )


def test_a_plain_body_that_a_coroutine_has_called_waits_like_any_other(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> str:
        ctx.sleep(0)
        ctx.sleep(DAY)
        return "up"

    async def caller() -> None:
        with pytest.raises(Left):
            deliver(body)

    asyncio.run(caller())
    assert lab.state() is State.SUSPENDED
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "up"


def test_an_error_beside_a_wait_comes_out_at_once(lab: Lab, deliver: Delivery) -> None:
    async def fails() -> None:
        raise ValueError("at once")

    async def body(ctx: DurableContext) -> None:
        await asyncio.gather(ctx.sleep(DAY), ctx.step("op", fails))

    with pytest.raises(ValueError, match="at once"):
        deliver(body)


# -- without leaving --------------------------------------------------------------------------------------------


def test_an_eager_body_waits_where_it_is(lab: Lab) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("a", timeout=30)
        timer = threading.Timer(0.1, resolve, (lab, promise, "yes"))
        timer.start()
        ctx.sleep(0.1)
        return ctx.wait(promise), ctx.select(a=promise, late=ctx.timer(0.01))

    assert lab.run(body) == ("yes", ("a", "yes"))


def test_an_eager_coroutine_waits_where_it_is(lab: Lab) -> None:
    async def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("a", timeout=0.1)
        try:
            await asyncio.gather(ctx.sleep(0.1), ctx.wait(promise))
        except celery_durable.PromiseTimeout:
            return await ctx.select(late=ctx.timer(0.1))
        return "never"

    assert lab.run(body) == ("late", None)


@pytest.mark.parametrize("call", ["promise", "timer", "wait"])
def test_a_direct_call_sleeps_and_has_nothing_else_to_wait_for(lab: Lab, call: str) -> None:
    def body(self: Any) -> str:
        self.durable.sleep(0.01)
        self.durable.sleep_until(dt.datetime.now(dt.timezone.utc))
        if call == "promise":
            self.durable.promise("a")
        elif call == "timer":
            self.durable.timer(5)
        else:
            self.durable.wait(Promise("a", "0", str))
        return "never"

    with pytest.raises(
        celery_durable.ConfigurationError, match=rf"^\[CD001\] {call}\(\) needs an execution in the journal"
    ):
        lab.task("direct", body)()


def test_a_direct_call_of_a_coroutine_sleeps_in_its_callers_loop(lab: Lab) -> None:
    async def body(self: Any) -> str:
        await asyncio.gather(self.durable.sleep(0.01), self.durable.sleep(0.02))
        return "up"

    task = lab.task("direct", body)

    async def caller() -> str:
        return str(await task())

    assert asyncio.run(caller()) == "up"
