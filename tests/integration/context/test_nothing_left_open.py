"""A body ends when what it began has ended: what is under way is waited for, and all that was done is undone."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celery_durable import Intent, OnAmbiguous, StepDescriptor
from celery_durable.store.records import State
from tests.support.lab import Crash, Lab, everywhere

pytestmark = everywhere

#: Longest wait of an operation for what it is waiting for, in seconds.
LONG = 60


class Stop(Exception):
    """What the bodies fail with."""


def descriptor(lab: Lab, name: str, policy: Any = OnAmbiguous.FAIL) -> StepDescriptor:
    """A guarded step; what it did is undone by ``undo NAME``."""
    return StepDescriptor.guarded(
        name, Intent.MONEY_MOVING, on_ambiguous=policy, compensate=lambda result, *args: lab.ledger.fire(f"undo {name}")
    )


def done(lab: Lab) -> set[str]:
    """What was done, by the witness."""
    return {name for name in lab.ledger.names() if not name.startswith("undo ")}


def undone(lab: Lab) -> list[str]:
    return [name.removeprefix("undo ") for name in lab.ledger.names() if name.startswith("undo ")]


def cancel(lab: Lab) -> None:
    lab.operations.cancel("one", "not wanted")


def until(event: threading.Event) -> None:
    assert event.wait(LONG)


# -- what there is to undo is told by every branch ------------------------------------------------------------------


def test_each_branch_tells_all_that_it_did(lab: Lab) -> None:
    crashes = [Crash()]

    def branch(context: Any, number: int) -> None:
        for step in range(number + 1):
            context.step(descriptor(lab, f"{number}.{step}"), lambda s=step: lab.ledger.fire(f"{number}.{s}"))
        if number == 2 and crashes:
            raise crashes.pop()
        context.step("more", lambda: None)

    def body(context: Any) -> None:
        with context.parallel(max_workers=1) as branches:
            made = [branches.submit(branch, context, number) for number in range(3)]
        [one.result() for one in made]

    lab.crash(body)
    cancel(lab)
    lab.lose_lease()
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert undone(lab) == ["2.2", "2.1", "2.0", "1.1", "1.0", "0.0"]


def test_nested_branches_tell_all_that_they_did(lab: Lab) -> None:
    crashes = [Crash()]

    def leaf(context: Any, name: str) -> None:
        context.step(descriptor(lab, name), lambda: lab.ledger.fire(name))
        if name == "1.1" and crashes:
            raise crashes.pop()
        context.step("more", lambda: None)

    def branch(context: Any, number: int) -> None:
        with context.parallel(max_workers=1) as branches:
            for inner in range(2):
                branches.submit(leaf, context, f"{number}.{inner}")

    def body(context: Any) -> None:
        with context.parallel(max_workers=1) as branches:
            for number in range(2):
                branches.submit(branch, context, number)

    lab.crash(body)
    cancel(lab)
    lab.lose_lease()
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert undone(lab) == ["1.1", "1.0", "0.1", "0.0"]


def test_coroutines_that_are_gathered_tell_all_that_they_did(lab: Lab) -> None:
    async def several(context: Any) -> None:
        for number in range(3):

            async def operate(number: int = number) -> None:
                lab.ledger.fire(f"x{number}")

            await context.step(descriptor(lab, f"x{number}"), operate)
            await asyncio.sleep(0.05)
        if lab.ledger.count("crashed") == 0:
            lab.ledger.fire("crashed")
            raise Crash

    async def body(context: Any) -> None:
        promise = context.promise("never")
        await asyncio.gather(several(context), context.wait(promise))

    lab.crash(body)
    cancel(lab)
    lab.lose_lease()
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert undone(lab) == ["x2", "x1", "x0"]


def test_a_crash_while_undoing_tells_the_same_again(lab: Lab) -> None:
    """A branch that handled an error went another way because of it; a replay goes that way too."""
    crashes: list[BaseException | None] = [Crash(), None]

    def undo(result: Any) -> None:
        error = crashes.pop(0) if crashes else None
        if error is not None:
            raise error
        lab.ledger.fire("undo hotel")

    hotel = StepDescriptor("hotel", compensate=undo)

    def failing(context: Any) -> None:
        try:
            context.step("look", lab.operation("look", None, Stop("no")))
        except Stop:
            context.on_failure(lab.ledger.fire, "undo look")

    def body(context: Any) -> None:
        context.step(hotel, lambda: lab.ledger.fire("hotel"))
        with context.parallel(max_workers=1) as branches:
            branches.submit(failing, context)
        raise Stop("in vain")

    lab.crash(body)
    with pytest.raises(Stop, match="in vain"):
        lab.run(body)
    assert undone(lab) == ["look", "hotel"]
    assert lab.state() is State.FAILED


# -- what is under way is waited for --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in the body", "in a branch"])
def test_a_cancelled_body_waits_for_the_branch_that_is_under_way(lab: Lab, how: str) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def operate() -> None:
        begun.set()
        until(cancelled)
        lab.ledger.fire("charge")

    def asks(context: Any) -> None:
        until(begun)
        cancel(lab)
        try:
            # Its intent's commit tells of the cancellation.
            context.step(descriptor(lab, "other"), lambda: lab.ledger.fire("other"))
        finally:
            cancelled.set()

    def body(context: Any) -> None:
        context.step(descriptor(lab, "first"), lambda: lab.ledger.fire("first"))
        with context.parallel() as branches:
            branches.submit(context.step, descriptor(lab, "charge"), operate)
            if how == "in the body":
                asks(context)
            else:
                branches.submit(asks, context)

    lab.parks(body)
    assert lab.ledger.names() == ["first", "charge", "undo charge", "undo first"]
    assert lab.state() is State.CANCELLED


@pytest.mark.parametrize("how", ["async with", "gather"])
def test_a_cancelled_coroutine_body_waits_for_what_is_under_way(lab: Lab, how: str) -> None:
    def body_of(begun: asyncio.Event, cancelled: asyncio.Event, context: Any) -> Any:
        async def charge() -> None:
            begun.set()
            await asyncio.wait_for(cancelled.wait(), LONG)
            await asyncio.sleep(0.05)
            lab.ledger.fire("charge")

        async def other() -> None:
            lab.ledger.fire("other")

        async def asks() -> None:
            await asyncio.wait_for(begun.wait(), LONG)
            await asyncio.to_thread(cancel, lab)
            asyncio.get_running_loop().call_later(0.05, cancelled.set)
            await context.step(descriptor(lab, "other"), other)

        return charge, asks

    async def body(context: Any) -> None:
        charge, asks = body_of(asyncio.Event(), asyncio.Event(), context)
        if how == "gather":
            await asyncio.gather(context.step(descriptor(lab, "charge"), charge), asks())
        else:
            async with context.parallel() as branches:
                branches.step(descriptor(lab, "charge"), charge)
                await asks()

    lab.parks(body)
    assert lab.ledger.names() == ["charge", "undo charge"]
    assert lab.state() is State.CANCELLED


def test_a_failed_coroutine_body_waits_for_what_is_under_way(lab: Lab) -> None:
    async def body(context: Any) -> None:
        begun = asyncio.Event()

        async def charge() -> None:
            begun.set()
            await asyncio.sleep(0.2)
            lab.ledger.fire("charge")

        async def refuse() -> None:
            await asyncio.wait_for(begun.wait(), LONG)
            raise Stop("no seat")

        await asyncio.gather(context.step(descriptor(lab, "charge"), charge), context.step("seat", refuse))

    with pytest.raises(Stop, match="no seat"):
        lab.run(body)
    assert lab.ledger.names() == ["charge", "undo charge"]
    assert "0 RESULT charge" in lab.entries()


def test_a_doubt_that_comes_up_when_the_body_has_failed_parks_it(lab: Lab) -> None:
    async def body(context: Any) -> None:
        begun = asyncio.Event()

        async def charge() -> None:
            begun.set()
            await asyncio.sleep(0.1)
            lab.ledger.fire("charge")
            raise TimeoutError("no answer")

        async def refuse() -> None:
            await asyncio.wait_for(begun.wait(), LONG)
            raise Stop("no seat")

        await asyncio.gather(context.step(descriptor(lab, "charge"), charge), context.step("seat", refuse))

    assert "raised TimeoutError" in lab.parks(body)
    assert lab.state() is State.AMBIGUOUS
    assert undone(lab) == []


def test_a_body_that_returns_waits_for_what_is_under_way(lab: Lab) -> None:
    async def body(context: Any) -> str:
        async def charge() -> None:
            await asyncio.sleep(0.1)
            lab.ledger.fire("charge")

        task = asyncio.ensure_future(context.step(descriptor(lab, "charge"), charge))
        await asyncio.sleep(0)
        return f"done {task.done()}"

    assert lab.run(body) == "done False"
    assert "0 RESULT charge" in lab.entries()
    assert lab.ledger.names() == ["charge"]


def test_a_divergence_waits_for_what_is_under_way(lab: Lab) -> None:
    """Its result belongs to the generation that ends, and is found by the next one (G6)."""
    begun, go_on = threading.Event(), threading.Event()

    def before(context: Any) -> None:
        with context.parallel():
            context.step(descriptor(lab, "old"), lambda: None)
            raise Crash

    def charge() -> str:
        begun.set()
        until(go_on)
        lab.ledger.fire("charge")
        return "receipt"

    def after(context: Any) -> str:
        with context.parallel() as branches:
            one = branches.submit(context.step, descriptor(lab, "charge"), charge)
            until(begun)
            threading.Timer(0.2, go_on.set).start()
            context.step("new", lambda: None)
        return one.result()

    lab.crash(before)
    assert lab.run(after) == "receipt"
    assert lab.execution().generation == 2
    assert lab.ledger.names() == ["charge"]


def test_a_soft_time_limit_that_meets_waiting_branches_waits_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    shutdown = ThreadPoolExecutor.shutdown
    limits = [Stop("too slow")]

    def interrupted(pool: Any, wait: bool = True, **options: Any) -> None:
        if pool._thread_name_prefix == "durable-branch" and limits:
            until(begun)
            go_on.set()
            raise limits.pop()
        shutdown(pool, wait, **options)

    def operate() -> None:
        begun.set()
        until(go_on)
        lab.ledger.fire("charge")

    def body(context: Any) -> None:
        with context.parallel() as branches:
            branches.submit(context.step, descriptor(lab, "charge"), operate)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(Stop, match="too slow"):
        lab.run(body)
    assert lab.ledger.names() == ["charge", "undo charge"]


# -- an error is handled when it was seen ---------------------------------------------------------------------------


def ask_in_branch(lab: Lab, context: Any, operate: Any, *, guarded: bool) -> Any:
    failed = threading.Event()

    def branch() -> Any:
        try:
            return context.step(descriptor(lab, "pay") if guarded else "pay", operate)
        finally:
            failed.set()

    with context.parallel() as branches:
        one = branches.submit(branch)
        until(failed)
        context.step("other", lambda: None)
    return one.result()


def test_a_doubt_in_a_branch_is_not_handled_by_a_step_beside_it(lab: Lab) -> None:
    operate = lab.operation("pay", "paid", TimeoutError("no answer"))
    reason = lab.parks(lambda context: ask_in_branch(lab, context, operate, guarded=True))
    assert "raised TimeoutError" in reason
    assert lab.state() is State.AMBIGUOUS


def test_an_error_in_a_branch_is_tried_again_by_a_retry(lab: Lab) -> None:
    operate = lab.operation("pay", "paid", TimeoutError("no answer"))
    lab._body = lambda context: ask_in_branch(lab, context, operate, guarded=False)
    task = lab.task(
        "again",
        lambda task: lab._body(task.durable),
        autoretry_for=(TimeoutError,),
        max_retries=3,
        default_retry_delay=0,
    )
    assert lab.apply(task) == "paid"
    assert lab.ledger.names() == ["pay", "pay"]


def test_what_the_body_saw_and_handled_inside_the_scope_is_journaled(lab: Lab) -> None:
    pay, last = lab.operation("pay", "paid", TimeoutError("no answer")), lab.operation("last", "done", Crash())

    def body(context: Any) -> str:
        with context.parallel() as branches:
            one = branches.submit(context.step, "pay", pay)
            try:
                one.result()
            except TimeoutError:
                context.step("other", lambda: None)
        return str(context.step("last", last))

    lab.crash(body)
    assert lab.run(body) == "done"
    assert lab.ledger.names() == ["pay", "last", "last"]


def test_a_doubt_of_which_nobody_was_told_parks_a_body_that_goes_on(lab: Lab) -> None:
    """The body got the exception of another branch."""

    def refuse() -> None:
        raise Stop("no")

    def body(context: Any) -> str:
        try:
            with context.parallel() as branches:
                branches.submit(context.step, "refuse", refuse)
                branches.submit(context.step, descriptor(lab, "pay"), lab.operation("pay", None, TimeoutError("hm")))
        except Stop:
            context.step("other", lambda: None)
        return "done"

    assert "raised TimeoutError" in lab.parks(body)
    assert lab.state() is State.AMBIGUOUS


def test_a_doubt_of_a_coroutine_is_not_handled_by_another_one(lab: Lab) -> None:
    async def nothing() -> None:
        """An operation."""

    async def body(context: Any) -> None:
        failed = asyncio.Event()

        async def pay() -> None:
            lab.ledger.fire("pay")
            failed.set()
            raise TimeoutError("no answer")

        async def others() -> None:
            await asyncio.wait_for(failed.wait(), LONG)
            await asyncio.sleep(0.05)
            for _ in range(3):
                await context.step("other", nothing)

        ended = await asyncio.gather(context.step(descriptor(lab, "pay"), pay), others(), return_exceptions=True)
        raise ended[0]

    assert "raised TimeoutError" in lab.parks(body)
    assert lab.state() is State.AMBIGUOUS
