"""A replay reads the beginnings of many branches at once, and each branch gets what is its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from celery_durable import DurableContext, Intent, OnAmbiguous, StepDescriptor
from celery_durable.store.journal import Journal
from tests.support.lab import Crash, Lab, everywhere

PAY = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the journal was read, and how."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        read = getattr(Journal, name)

        def counting(self: Journal, *args: Any) -> Any:
            counted[name] += 1
            return read(self, *args)

        monkeypatch.setattr(Journal, name, counting)

    count("segment")
    count("beginnings")
    return counted


class Twice:
    """Runs a body up to a step behind it, dies there, and runs it again."""

    def __init__(self, lab: Lab, body: Any) -> None:
        self.lab = lab
        self.body = body
        self.first: Any = None

    def crash(self) -> None:
        def dying(ctx: DurableContext) -> None:
            self.first = self.body(ctx)
            ctx.step(PAY, self.lab.operation("last"))
            raise Crash

        self.lab.crash(dying)

    def again(self) -> Any:
        def living(ctx: DurableContext) -> Any:
            value = self.body(ctx)
            ctx.step(PAY, self.lab.operation("last"))
            return value

        return self.lab.run(living)


@everywhere
def test_many_short_branches_take_a_few_reads(lab: Lab, reads: Counter[str]):
    work = lab.operation("work", 1)
    twice = Twice(lab, lambda ctx: sum(ctx.map(lambda item: ctx.step("work", work, item), range(250))))
    twice.crash()
    reads.clear()
    assert twice.again() == twice.first == 250
    # Three, and one more for each thread that was ahead of the others.
    assert reads["beginnings"] <= 11
    # The body's own, and nothing for a branch.
    assert reads["segment"] <= 4
    assert (lab.ledger.count("work"), lab.ledger.count("last")) == (250, 1)


@everywhere
def test_long_branches_are_read_one_by_one_and_whole(lab: Lab, reads: Counter[str]):
    pay = lab.operation("pay", 1)

    def branch(ctx: DurableContext, item: int) -> int:
        return sum(ctx.step(PAY, pay, item, number) for number in range(5 + 30 * (item % 3)))

    twice = Twice(lab, lambda ctx: ctx.map(lambda item: branch(ctx, item), range(12)))
    twice.crash()
    reads.clear()
    assert twice.again() == twice.first
    paid = lab.ledger.count("pay")
    assert paid == 4 * (5 + 35 + 65)
    assert reads["beginnings"] <= 12
    assert len(lab.rows()) > 2 * paid


@everywhere
def test_branches_that_had_not_begun_begin_after_a_crash(lab: Lab):
    work = lab.operation("work", 1)
    die = [True]

    def branch(ctx: DurableContext, item: int) -> int:
        value = ctx.step("work", work, item)
        if item == 60:
            ctx.step(PAY, lab.operation("in between"))
            if die.pop():
                raise Crash
        return value

    def body(ctx: DurableContext) -> int:
        with ctx.parallel(max_workers=1) as branches:
            made = [branches.submit(branch, ctx, item) for item in range(130)]
        return sum(branch.result() for branch in made)

    lab.crash(body)
    die[:] = [False]
    assert lab.run(body) == 130
    assert lab.ledger.count("in between") == 1
    done = Counter(entry["args"][0] for entry in lab.ledger.entries("work"))
    assert set(done) == set(range(130))
    # What was committed with the guarded step is not done again.
    assert [item for item, times in done.items() if times > 1 and item <= 60] == []


@everywhere
def test_nested_branches(lab: Lab):
    pay = lab.operation("pay", 1)

    def outer(ctx: DurableContext, item: int) -> int:
        return sum(ctx.map(lambda other: ctx.step(PAY, pay, item, other), range(3)))

    twice = Twice(lab, lambda ctx: sum(ctx.map(lambda item: outer(ctx, item), range(40))))
    twice.crash()
    assert twice.again() == twice.first == 120
    assert lab.ledger.count("pay") == 120


@everywhere
def test_coroutines_as_branches(lab: Lab, reads: Counter[str]):
    async def pay(item: int) -> int:
        lab.ledger.fire("pay", args=[item])
        return 1

    async def body(ctx: DurableContext, dies: bool) -> int:
        async def one(item: int) -> int:
            return await ctx.step(PAY, pay, item)

        total = sum(await ctx.map(one, range(130)))
        if dies:
            raise Crash
        return total

    lab.crash(body, True)
    reads.clear()
    assert lab.run(body, False) == 130
    assert lab.ledger.count("pay") == 130
    assert reads["beginnings"] <= 3
    assert reads["segment"] <= 4


@everywhere
def test_a_new_scope_behind_the_journals_end_reads_nothing(lab: Lab, reads: Counter[str]):
    pay = lab.operation("pay", 1)

    def dying(ctx: DurableContext) -> None:
        ctx.step(PAY, pay)
        raise Crash

    def living(ctx: DurableContext) -> int:
        ctx.step(PAY, pay)
        reads.clear()
        return sum(ctx.map(lambda item: ctx.step("work", lab.operation("work", 1), item), range(50)))

    lab.crash(dying)
    assert lab.run(living) == 50
    assert reads == {}
