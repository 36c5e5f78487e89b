"""Bodies without a journal: called directly, and run on while the journal is unavailable."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    ContextClosed,
    DurableTask,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    current_step,
    guarded,
    step,
)
from celery_durable.runtime import Runtime


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
    assert pay.apply((5,), task_id="one").get() == durable
    assert len(set(durable)) == 5


def test_an_async_run_without_the_journal_does_so_too(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    pay = async_task(app)
    durable = pay.apply((5,), task_id="one").get()
    break_journal(app, monkeypatch)
    assert pay.apply((5,), task_id="one").get() == durable
