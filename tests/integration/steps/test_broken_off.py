"""A step that is broken off from outside, by a timeout, is journaled so that a replay goes the same way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celery_durable import Intent, OnAmbiguous, StepDescriptor, resolve
from celery_durable.store.journal import Journal
from celery_durable.store.records import State
from tests.support.lab import Crash, Lab, everywhere

pytestmark = everywhere


class Stop(Exception):
    """What the bodies fail with."""


class TimeIsUp(BaseException):
    """As gevent's Timeout: no Exception."""


def moving(name: str, policy: Any = OnAmbiguous.FAIL) -> StepDescriptor:
    return StepDescriptor.guarded(name, Intent.MONEY_MOVING, on_ambiguous=policy)


def card_or_bank(lab: Lab, card: StepDescriptor, *, seconds: float = 0.1) -> Any:
    """Pays by card, and by bank where that takes too long; then its process dies once."""
    hanging = lab.ledger

    async def by_card() -> str:
        hanging.fire("card")
        # The remote side is quick the second time.
        await asyncio.sleep(3600 if hanging.count("card") == 1 else 0)
        return "card"

    async def by_bank() -> str:
        hanging.fire("bank")
        return "bank"

    async def body(context: Any) -> str:
        try:
            how = await asyncio.wait_for(context.step(card, by_card), seconds)
        except asyncio.TimeoutError:
            how = await context.step(moving("bank"), by_bank)
        if lab.ledger.count("died") == 0:
            lab.ledger.fire("died")
            raise Crash
        return how

    return body


@pytest.mark.parametrize(
    "card",
    [moving("card", OnAmbiguous.RERUN), moving("card"), StepDescriptor("card")],
    ids=["rerun", "fail", "idempotent"],
)
def test_a_time_out_that_the_body_handled_is_one_on_replay_too(lab: Lab, card: StepDescriptor) -> None:
    body = card_or_bank(lab, card)
    lab.crash(body)
    assert lab.run(body) == "bank"
    assert lab.execution().generation == 1
    # On a busy machine the time may be up before the operation began.
    assert [name for name in lab.ledger.names() if name != "card"] == ["bank", "died"]
    assert lab.ledger.count("card") <= 1


def test_a_time_out_that_the_body_does_not_handle_is_a_doubt(lab: Lab) -> None:
    async def body(context: Any) -> None:
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.sleep(3600)

        task = asyncio.ensure_future(context.step(moving("card"), hang))
        await begun.wait()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            raise Stop("too slow") from None

    assert "was interrupted by CancelledError while its operation ran" in lab.parks(body)
    assert lab.state() is State.AMBIGUOUS


def test_a_cancellation_that_comes_when_the_step_is_done_is_too_late(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is on its way into the journal: body and journal must not disagree."""
    append = Journal.append
    slow: list[Any] = []

    def slowly(self: Journal, batches: Any, *rest: Any) -> Any:
        for one in slow:
            one()
        slow.clear()
        return append(self, batches, *rest)

    monkeypatch.setattr(Journal, "append", slowly)

    async def body(context: Any) -> str:
        loop = asyncio.get_running_loop()
        held = asyncio.Event()

        async def pay() -> str:
            lab.ledger.fire("card")

            def commit() -> None:
                loop.call_soon_threadsafe(task.cancel)
                # Until the task has had its cancellation, and holds out.
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(60)

            slow.append(commit)
            return "card"

        async def nothing() -> None:
            lab.ledger.fire("never")

        async def one_after_the_other() -> str:
            how = await context.step(moving("card"), pay)
            held.set()
            await context.step("next", nothing)
            return str(how)

        task = asyncio.ensure_future(one_after_the_other())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.is_set()
        return "done"

    assert lab.run(body) == "done"
    assert [e for e in lab.entries() if e.startswith("0")] == ["0 INTENT card", "0 RESULT card"]
    # The next step of the task got it.
    assert lab.ledger.names() == ["card"]


def test_other_exceptions_that_are_none_are_journaled_too(lab: Lab) -> None:
    def body(context: Any) -> str:
        try:
            how = context.step(moving("card", OnAmbiguous.RERUN), card)
        except TimeIsUp:
            how = context.step(moving("bank"), lab.operation("bank", "bank"))
        context.step("last", last)
        return str(how)

    card = lab.operation("card", "card", TimeIsUp("3 seconds"))
    last = lab.operation("last", None, Crash())
    lab.crash(body)
    assert lab.run(body) == "bank"
    assert lab.ledger.names() == ["card", "bank", "last", "last"]


def test_a_wait_that_is_broken_off_is_journaled_too(lab: Lab) -> None:
    async def body(context: Any) -> str:
        promise = context.promise("approval")
        given.append((promise.id, promise.token))
        task = asyncio.ensure_future(context.wait(promise))
        await asyncio.sleep(0)
        while "1 WAIT approval" not in lab.entries():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.02)
        task.cancel()
        try:
            how = await task
        except asyncio.CancelledError:
            how = "too late"
        await context.step("last", slowly)
        return str(how)

    async def slowly() -> None:
        last()

    given: list[tuple[str, str]] = []
    last = lab.operation("last", None, Crash())
    lab.crash(body)
    resolve(*given[0], "yes", app=lab.app)
    # It is kept now. But the body went another way.
    assert lab.run(body) == "too late"
    assert lab.execution().generation == 1
