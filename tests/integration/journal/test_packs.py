"""Quick steps share rows of the journal, and nobody notices."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, OnAmbiguous, Retry, StepDescriptor
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab, everywhere

RERUN = charging(OnAmbiguous.RERUN)


class Once:
    """Dies at the end of a body's first run."""

    def __init__(self) -> None:
        self.dead = False

    def __call__(self) -> None:
        if not self.dead:
            self.dead = True
            raise Crash


@pytest.fixture
def make_lab(make_lab: Callable[..., Lab]) -> Callable[..., Lab]:
    """What is committed together is decided by the bodies here, and not by the timer on a busy machine."""
    return functools.partial(make_lab, durable_flush_interval=9.0)


@everywhere
def test_steps_that_are_committed_together_share_a_row(lab: Lab) -> None:
    values = [1, "žluťoučký", Decimal("1.50"), dt.date(2026, 5, 1), ("a", b"b"), None, {"c": [1.5]}, True]
    die = Once()

    def body(ctx: DurableContext) -> list[Any]:
        found = [ctx.step(f"step {n}", lab.operation(f"op {n}", value), n) for n, value in enumerate(values)]
        die()
        return found

    lab.crash(body)
    assert lab.entries() == ["0 CHECKPOINT checkpoint"]
    assert lab.execution().steps == 8
    assert lab.run(body) == values
    assert [lab.ledger.count(f"op {n}") for n in range(8)] == [1] * 8
    assert lab.entries() == ["0 CHECKPOINT checkpoint"]
    steps = celery_durable.get("one", lab.app).steps()
    assert [(step.position, step.name, step.value()) for step in steps] == [
        (str(n), f"step {n}", value) for n, value in enumerate(values)
    ]


@everywhere
def test_what_must_be_found_by_itself_has_a_row_of_its_own(lab: Lab) -> None:
    tried = StepDescriptor.idempotent("tried", retry=Retry(2, backoff=0))
    flaky = lab.operation("flaky", "done", OSError("1"))
    die = Once()

    def body(ctx: DurableContext) -> list[Any]:
        found = [ctx.step("few", lab.operation("op"), n) for n in range(3)]
        found.append(ctx.step(RERUN, lab.operation("charge", "receipt")))
        found += [ctx.step("many", lab.operation("op"), n) for n in range(5)]
        found.append(ctx.step(tried, flaky))
        found += [ctx.step("more", lab.operation("op"), n) for n in range(4)]
        found.append(ctx.step("large", lab.operation("op", "x" * 20_000)))
        die()
        return found

    lab.crash(body)
    assert lab.entries() == [
        "0 RESULT few", "1 RESULT few", "2 RESULT few", "3 INTENT charge", "3 RESULT charge", "4 CHECKPOINT checkpoint",
        "9 ATTEMPT tried", "9 RESULT tried", "10 CHECKPOINT checkpoint", "14 RESULT large",
    ]  # fmt: skip
    assert lab.run(body) == [None] * 3 + ["receipt"] + [None] * 5 + ["done"] + [None] * 4 + ["x" * 20_000]
    assert (lab.ledger.count("op"), lab.ledger.count("charge"), lab.ledger.count("flaky")) == (13, 1, 2)


def test_a_change_of_the_body_is_noticed_in_the_middle_of_a_pack(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")
    op = lab.operation("op")
    die = Once()

    def body(ctx: DurableContext, third: str, end: int) -> None:
        for n in range(end):
            ctx.step(third if n == 3 else "step", op, n)
        die()

    lab.crash(body, "step", 8)
    said = lab.parks(body, "other", 8)
    assert said.startswith("[CD101] execution one diverged from its journal at position 3: another step was recorded.")
    lab.operations.resume("one")
    assert "position 6" in lab.parks(body, "step", 6)
    lab.operations.resume("one")
    lab.run(body, "step", 8)
    assert lab.ledger.count("op") == 8


@everywhere
def test_branches_have_packs_of_their_own(lab: Lab) -> None:
    die = Once()

    def branch(ctx: DurableContext, number: int) -> list[int]:
        return [ctx.step("part", lab.operation("part", 10 * number + n), n) for n in range(6)]

    def body(ctx: DurableContext) -> list[Any]:
        found: list[Any] = [ctx.step("first", lab.operation("first", "one"))]
        with ctx.parallel(max_workers=1) as branches:
            parts = [branches.submit(branch, ctx, number) for number in range(2)]
        found += [part.result() for part in parts]
        die()
        return found

    lab.crash(body)
    assert [entry for entry in lab.entries() if "CHECKPOINT" in entry] == [
        "1.0/0 CHECKPOINT checkpoint",
        "1.1/0 CHECKPOINT checkpoint",
    ]
    wanted = ["one", [0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]]
    assert lab.run(body) == wanted
    assert (lab.ledger.count("part"), lab.ledger.count("first")) == (12, 1)


def test_a_branch_that_is_gone_is_named_by_its_step(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")
    op = lab.operation("op")
    die = Once()

    def body(ctx: DurableContext, branches: int) -> None:
        with ctx.parallel(max_workers=1) as scope:
            for _ in range(branches):
                scope.submit(lambda: [ctx.step("part", op, n) for n in range(5)]).result()
            die()

    lab.crash(body, 2)
    assert "0.1/0 CHECKPOINT checkpoint" in lab.entries()
    said = lab.parks(body, 1)
    assert "at position 0.1/0" in said
    assert "part" in said
    assert "checkpoint" not in said


def test_a_damaged_pack_is_a_clear_error(lab: Lab) -> None:
    op = lab.operation("op")
    die = Once()

    def body(ctx: DurableContext) -> None:
        for n in range(8):
            ctx.step("step", op, n)
        die()

    lab.crash(body)
    good = lab.rows()[0].payload
    assert good is not None
    lab.change_row("checkpoint", payload=good[:-1] + bytes([good[-1] ^ 1]))
    assert "the checkpoint at position 0 of generation 1 cannot be read back" in lab.parks(body)
    assert lab.ledger.count("op") == 8
