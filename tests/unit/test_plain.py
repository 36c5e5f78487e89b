"""Bodies without a journal: called directly, and run on while the journal is unavailable."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    ConfigurationError,
    ContextClosed,
    DurableContext,
    DurableError,
    DurableTask,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    Promise,
    Timer,
    current_step,
    guarded,
    step,
)
from celery_durable.runtime import Runtime
from tests.support.delivery import FIRST, hand_over


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN))
def charge(cents: int) -> str:
    return current_step().idempotency_key.hex()


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN))
async def charge_async(cents: int) -> str:
    return current_step().idempotency_key.hex()


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN), key=lambda cents: f"charge-{cents}")
def charge_named(cents: int) -> str:
    return current_step().idempotency_key.hex()


@pytest.fixture
def app() -> Celery:
    app = Celery("plain", set_as_current=False)
    app.conf.update(
        durable_database_url="sqlite://",
        task_always_eager=True,
        durable_on_unavailable="degrade",
        broker_url="memory://",
    )
    return app


def task(app: Celery) -> Any:
    @app.task(base=DurableTask, bind=True, name="pay")
    def pay(self: DurableTask, cents: int) -> list[str]:
        with self.durable.parallel() as branches:
            two = [branches.submit(charge, cents) for _ in range(2)]
        return [branch.result() for branch in two] + [charge(cents), charge(cents), charge_named(cents)]

    return pay


def async_task(app: Celery) -> Any:
    @app.task(base=DurableTask, name="pay_async")
    async def pay_async(cents: int) -> list[str]:
        return [await charge_async(cents), await charge_async(cents)]

    return pay_async


def break_journal(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(request: object) -> None:
        raise JournalUnavailable("the database is away.")

    monkeypatch.setattr(Runtime.of(app).ownership, "open", unavailable)
    monkeypatch.setattr(Runtime.of(app), "marks_redelivery", True)


def test_a_task_called_directly_gives_its_steps_a_handle_with_a_key_of_this_call(app: Celery) -> None:
    pay = task(app)
    first, second = pay(5), pay(5)
    assert len(set(first + second)) == 10


def test_an_async_task_called_directly_does_so_too(app: Celery) -> None:
    assert len(set(asyncio.run(async_task(app)(5)))) == 2


def test_the_direct_call_leaves_nothing_behind(app: Celery) -> None:
    task(app)(5)
    with pytest.raises(ContextClosed):
        charge(5)


def test_a_run_without_the_journal_hands_out_the_keys_of_a_durable_one(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay = task(app)
    durable = pay.apply((5,), task_id="one").get()
    break_journal(app, monkeypatch)
    assert hand_over(pay, "one", 5, **FIRST) == durable
    assert len(set(durable)) == 5


def test_an_async_run_without_the_journal_does_so_too(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    pay = async_task(app)
    durable = pay.apply((5,), task_id="one").get()
    break_journal(app, monkeypatch)
    assert hand_over(pay, "one", 5, **FIRST) == durable


def run_body(app: Celery, body: Callable[[DurableContext], Any], how: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a task directly, or let it run on without its journal."""

    @app.task(base=DurableTask, bind=True, name="work", shared=False)
    def work(self: DurableTask) -> Any:
        return body(self.durable)

    if how == "directly":
        return work()
    break_journal(app, monkeypatch)
    return hand_over(work, "one", **FIRST)


@pytest.mark.parametrize("how", ["directly", "degraded"])
def test_nothing_is_undone_without_a_journal(app: Celery, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undone: list[int] = []

    def body(ctx: DurableContext) -> None:
        ctx.on_failure(undone.append, 1)
        raise ValueError("no flight")

    with pytest.raises(ValueError, match="no flight"):
        run_body(app, body, how, monkeypatch)
    assert undone == []


@pytest.mark.parametrize("how", ["directly", "degraded"])
def test_what_cannot_be_undone_is_refused_without_a_journal_too(
    app: Celery, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"on_failure\(\) takes a function and its arguments, not 5"):
        run_body(app, lambda ctx: ctx.on_failure(5), how, monkeypatch)  # type: ignore[arg-type]


CALLS: dict[str, Callable[[DurableContext], Any]] = {
    "attempt": lambda ctx: ctx.attempt,
    "call": lambda ctx: ctx.call(Celery("no", set_as_current=False).signature("no")),
    "execution_id": lambda ctx: ctx.execution_id,
    "gather": lambda ctx: ctx.gather(),
    "logger": lambda ctx: ctx.logger.info("said"),
    "map": lambda ctx: ctx.map(str, [1]),
    "now": lambda ctx: ctx.now(),
    "on_failure": lambda ctx: ctx.on_failure(len, ""),
    "parallel": lambda ctx: ctx.parallel(),
    "patched": lambda ctx: ctx.patched("a"),
    "promise": lambda ctx: ctx.promise("a"),
    "random": lambda ctx: ctx.random(),
    "replaying": lambda ctx: ctx.replaying,
    "select": lambda ctx: ctx.select(late=Timer()),
    "sleep": lambda ctx: ctx.sleep(0),
    "sleep_until": lambda ctx: ctx.sleep_until(dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)),
    "step": lambda ctx: ctx.step("a", len, ""),
    "step_recorded": lambda ctx: ctx.step_recorded("a", len, ""),
    "timer": lambda ctx: ctx.timer(1),
    "transaction": lambda ctx: ctx.transaction("a", str),
    "uuid4": lambda ctx: ctx.uuid4(),
    "wait": lambda ctx: ctx.wait(Promise("a", "0", str)),
}


#: Without a journal there is nobody who could be found, or nowhere to write; and misuse is told as ever.
REFUSED = {"call", "gather", "promise", "select", "timer", "transaction", "wait"}


@pytest.mark.parametrize("how", ["directly", "degraded"])
@pytest.mark.parametrize("name", [name for name in dir(DurableContext) if not name.startswith("_")])
def test_whatever_a_body_asks_for_is_done_or_refused(
    app: Celery, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        run_body(app, CALLS[name], how, monkeypatch)
    except DurableError:
        assert name in REFUSED
