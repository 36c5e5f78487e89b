"""After a divergence, what an earlier generation did is looked up where it is asked for: values stay in the journal."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import DurableContext, Intent, OnAmbiguous, StepDescriptor
from celery_durable.store.journal import Journal
from tests.support.lab import Crash, Lab, everywhere

PAY = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)
SIZE = 10_000


@everywhere
def test_only_the_results_that_are_asked_for_are_read(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    number = 30
    pay = lab.operation("pay", "x" * SIZE)

    def before(ctx: DurableContext) -> None:
        for order in range(number):
            ctx.step(PAY, pay, order)
        raise Crash

    def after(ctx: DurableContext, asked: int) -> int:
        ctx.step("new", lambda: None)
        return sum(len(ctx.step(PAY, pay, order)) for order in range(asked))

    lab.crash(before, id="one")
    read: list[int] = []
    group = Journal.group

    def reading(self: Journal, *place: Any) -> Any:
        rows = group(self, *place)
        read.append(sum(len(row.payload or b"") for row in rows))
        return rows

    monkeypatch.setattr(Journal, "group", reading)
    assert lab.run(after, 3, id="one") == 3 * SIZE
    assert lab.ledger.count("pay") == number
    assert len(read) == 3
    assert sum(read) < 4 * SIZE
    execution = lab.execution()
    assert not any(row.payload for row in lab.runtime.journal.guarded(execution.pk, 1, 2))


@everywhere
def test_a_conflict_names_the_arguments_of_then(lab: Lab):
    pay = lab.operation("pay", 1)

    def before(ctx: DurableContext) -> None:
        ctx.step(PAY, pay, "then")
        raise Crash

    def after(ctx: DurableContext) -> None:
        ctx.step("new", lambda: None)
        ctx.step(PAY, pay, "now")

    lab.crash(before)
    lab.parks(after)
    assert [line for line in lab.details().splitlines() if "then  " in line] == ["then  ('then')"]
    assert lab.ledger.count("pay") == 1


@everywhere
def test_equals_are_claimed_one_after_the_other(lab: Lab):
    """Two branches have swapped their places: the keys differ, and each result is taken once."""
    pay = lab.operation("pay", 1)

    def before(ctx: DurableContext) -> None:
        for _ in range(3):
            ctx.step(PAY, pay, "same")
        raise Crash

    def after(ctx: DurableContext) -> int:
        ctx.step("new", lambda: None)
        with ctx.parallel() as branches:
            made = [branches.submit(ctx.step, PAY, pay, "same") for _ in range(3)]
        return sum(branch.result() for branch in made)

    lab.crash(before)
    assert lab.run(after) == 3
    assert lab.ledger.count("pay") == 3
