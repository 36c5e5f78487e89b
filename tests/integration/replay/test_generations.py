"""Guarded effects survive a divergence, and arguments that drift never become a second charge."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import DurableContext, OnAmbiguous, StepDescriptor
from celery_durable.store.records import EntryKind, State
from tests.integration.charging import Declined, charging
from tests.support.lab import Crash, Lab, everywhere

RERUN = charging(OnAmbiguous.RERUN)


def paying(op: Any, *, before: str, cents: int = 5, charge: StepDescriptor = RERUN, after: Any = None) -> Any:
    """A body that charges after a step whose name changes from deploy to deploy."""

    def body(ctx: DurableContext) -> Any:
        ctx.step(before, lambda: None)
        value = ctx.step(charge, op, cents)
        if after is not None:
            raise after
        return value

    return body


@everywhere
def test_a_committed_charge_is_found_by_its_key_and_not_fired_again(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))
    key = lab.rows()[1].key
    assert lab.run(paying(op, before="b")) == "receipt"
    assert lab.ledger.count("charge") == 1
    assert lab.entries() == ["0 RESULT b", "1 RESULT charge"]
    assert lab.rows()[1].key == key


def test_it_is_found_at_any_later_generation(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    for name in "abc":
        lab.crash(paying(op, before=name, after=Crash()))
    assert lab.run(paying(op, before="d")) == "receipt"
    assert lab.execution().generation == 4
    assert lab.ledger.count("charge") == 1


def test_it_is_found_where_the_charge_has_moved(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))

    def moved(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            return branches.step(RERUN, op, 5).result()

    assert lab.run(moved) == "receipt"
    assert lab.ledger.count("charge") == 1


def test_equal_charges_are_found_one_for_one(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")

    def body(first: str, times: int) -> Any:
        def run(ctx: DurableContext) -> Any:
            ctx.step(first, lambda: None)
            found = [ctx.step(RERUN, op, 5) for _ in range(times)]
            if first == "a":
                raise Crash
            return found

        return run

    lab.crash(body("a", 2))
    assert lab.run(body("b", 3)) == ["receipt"] * 3
    assert lab.ledger.count("charge") == 3


@pytest.mark.parametrize("kind", [EntryKind.SKIPPED, EntryKind.LOST])
def test_a_skipped_or_lost_result_is_found_too(lab: Lab, kind: EntryKind) -> None:
    op = lab.operation("charge", object() if kind is EntryKind.LOST else None, *[Crash()][: kind is EntryKind.SKIPPED])
    charge = charging(OnAmbiguous.SKIP, assumed=None)

    def body(before: str) -> Any:
        def run(ctx: DurableContext) -> Any:
            ctx.step(before, lambda: None)
            try:
                value = ctx.step(charge, op, 5)
            except Exception as error:
                value = type(error).__name__
            ctx.step("told", lambda: None)
            if before == "a":
                raise Crash
            return value

        return run

    lab.crash(body("a"))
    if kind is EntryKind.SKIPPED:
        lab.crash(body("a"))
    assert lab.run(body("b")) == ("ResultLost" if kind is EntryKind.LOST else None)
    assert f"1 {kind.name} charge" in lab.entries()
    assert lab.ledger.count("charge") == 1


@everywhere
def test_an_open_intent_of_an_earlier_generation_is_left_to_the_policy(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "receipt", Crash())
    lab.crash(paying(op, before="a", charge=fail))
    said = lab.parks(paying(op, before="b", charge=fail))
    assert said == (
        "guarded step 'charge' (position 1) of execution one is in doubt: an intent without a result in generation 1. "
        "Nobody knows whether its effect happened, and its policy does not allow a guess. Look at the remote side "
        "(idempotency key KEY), then: celery durable resolve one 1 --value JSON | --run | --fail"
    )
    assert lab.ledger.count("charge") == 1
    lab.settle("1", EntryKind.RESULT, "by hand")
    assert lab.run(paying(op, before="b", charge=fail)) == "by hand"
    assert lab.ledger.count("charge") == 1


def test_an_error_that_the_body_handled_is_no_obstacle(lab: Lab) -> None:
    """It is known that the operation is not under way: it may be run anew."""
    charge = charging(OnAmbiguous.FAIL, definite=Declined)
    op = lab.operation("charge", "receipt", Declined("no"))

    def first(ctx: DurableContext) -> None:
        with pytest.raises(Declined):
            ctx.step(charge, op, 5)
        ctx.step("told", lambda: None)
        raise Crash

    lab.crash(first)
    assert lab.run(paying(op, before="b", charge=charge)) == "receipt"
    assert lab.ledger.count("charge") == 2


# -- arguments that drift ---------------------------------------------------------------------------------------


def conflict(doing: str = "ran") -> str:
    return (
        f"guarded step 'charge' (position 1) of execution one {doing} already in generation 1 of the journal, under "
        "other arguments (fingerprint PRINT then, PRINT now; the arguments: celery durable show one --reveal).\n  "
        "Nothing was called. If both mean the same operation, give the step a key= or wrap the drifting value in a "
        "step. To settle this execution: celery durable resolve one 1 --value JSON | --run | --fail"
    )


def printless(said: str) -> str:
    """Without the hashes of the arguments."""
    return re.sub(r"[0-9a-f]{12} (then|now)", r"PRINT \1", said)


@everywhere
def test_a_charge_under_other_arguments_is_neither_fired_nor_answered(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))
    assert printless(lab.parks(paying(op, before="b", cents=6))) == conflict()
    assert lab.state() is State.AMBIGUOUS
    assert lab.ledger.count("charge") == 1
    [audit] = lab.audits()
    assert audit == {
        "reason": "conflict",
        "generation": 1,
        "then": "(5)",
        "now": "(6)",
        "key": lab.rows(generation=1)[2].key.hex(),  # type: ignore[union-attr]
    }


def test_a_charge_that_may_have_run_conflicts_too(lab: Lab) -> None:
    op = lab.operation("charge", "receipt", Crash())
    lab.crash(paying(op, before="a"))
    assert printless(lab.parks(paying(op, before="b", cents=6))) == conflict("may have run")
    assert lab.ledger.count("charge") == 1


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_conflict_cannot_be_swallowed(lab: Lab, kind: type[BaseException]) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))

    def careless(ctx: DurableContext) -> Any:
        try:
            return paying(op, before="b", cents=6)(ctx)
        except kind:
            return ctx.step("after", lab.operation("after"))

    assert printless(lab.parks(careless)) == conflict()
    assert lab.ledger.names() == ["charge"]


@pytest.mark.parametrize(
    ("kind", "given", "fired"),
    [(EntryKind.RESULT, "by hand", 1), (EntryKind.RUN_AGAIN, None, 2), (EntryKind.ERROR, Declined("no"), 1)],
)
def test_an_operator_settles_a_conflict(lab: Lab, kind: EntryKind, given: Any, fired: int) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))
    drifted = paying(op, before="b", cents=6)
    lab.parks(drifted)
    lab.settle("1", kind, given)
    if kind is EntryKind.ERROR:
        with pytest.raises(Declined, match="no"):
            lab.run(drifted)
    else:
        assert lab.run(drifted) == (given or "receipt")
    assert lab.ledger.count("charge") == fired


def test_a_conflict_is_looked_at_again_when_the_body_was_mended(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    lab.crash(paying(op, before="a", after=Crash()))
    lab.parks(paying(op, before="b", cents=6))
    lab.operations.resume("one")
    assert lab.run(paying(op, before="b", cents=5)) == "receipt"
    assert lab.ledger.count("charge") == 1
    assert lab.execution().generation == 3


def test_a_drifting_value_in_a_step_does_not_conflict_without_a_divergence(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    values = iter([5, 6])

    def body(ctx: DurableContext) -> Any:
        cents = ctx.step("price", lambda: next(values))
        value = ctx.step(RERUN, op, cents)
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash
        return value

    lab.crash(body)
    assert lab.run(body) == "receipt"
    assert lab.ledger.entries("charge")[0]["args"] == [5]
    assert lab.ledger.count("charge") == 1


def test_operations_that_the_application_named_differently_do_not_conflict(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    named = charging(OnAmbiguous.RERUN, key=lambda cents: f"order-{cents}")
    lab.crash(paying(op, before="a", charge=named, after=Crash()))
    assert lab.run(paying(op, before="b", charge=named, cents=6)) == "receipt"
    assert lab.ledger.count("charge") == 2


def test_two_charges_of_which_one_is_claimed_leave_the_other_in_conflict(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")

    def body(before: str, *cents: int) -> Any:
        def run(ctx: DurableContext) -> Any:
            ctx.step(before, lambda: None)
            for each in cents:
                ctx.step(RERUN, op, each)
            if before == "a":
                raise Crash
            return "done"

        return run

    lab.crash(body("a", 5, 7))
    assert "(7)" not in lab.parks(body("b", 5, 6))
    assert "then  (7)\nnow   (6)" in lab.details()
    assert lab.ledger.count("charge") == 2


# -- patched ----------------------------------------------------------------------------------------------------


def test_a_new_execution_takes_the_new_path_and_keeps_it(lab: Lab) -> None:
    seen: list[bool] = []

    def body(ctx: DurableContext) -> None:
        seen.append(ctx.patched("greet"))
        ctx.step("a", lambda: None)
        if len(seen) == 1:
            raise Crash

    lab.crash(body)
    lab.run(body)
    assert seen == [True, True]


def with_patch(op: Any, *, crash: bool = False) -> Callable[[DurableContext], str]:
    def body(ctx: DurableContext) -> str:
        ctx.step("a", op)
        path = "new" if ctx.patched("greet") else "old"
        if path == "new":
            ctx.step("greet", op)
        ctx.step("b", op)
        if crash:
            raise Crash
        return path

    return body


@everywhere
def test_an_execution_that_had_passed_the_place_stays_on_the_old_path(lab: Lab) -> None:
    op = lab.operation("op")

    def then(ctx: DurableContext) -> None:
        ctx.step("a", op)
        ctx.step("b", op)
        raise Crash

    lab.crash(then)
    lab.crash(with_patch(op, crash=True))
    assert lab.run(with_patch(op)) == "old"
    assert lab.ledger.count("op") == 2
    assert lab.execution().generation == 1


def test_an_execution_that_had_not_come_there_takes_the_new_path(lab: Lab) -> None:
    op = lab.operation("op")

    def then(ctx: DurableContext) -> None:
        ctx.step("a", op)
        raise Crash

    lab.crash(then)
    lab.crash(with_patch(op, crash=True))
    assert lab.run(with_patch(op)) == "new"
    assert lab.ledger.count("op") == 3
    assert lab.execution().generation == 1


def test_a_patch_can_be_removed_when_no_old_execution_is_left(lab: Lab) -> None:
    op = lab.operation("op")
    lab.crash(with_patch(op, crash=True))

    def later(ctx: DurableContext) -> str:
        for name in ("a", "greet", "b"):
            ctx.step(name, op)
        return "new for all"

    assert lab.run(later) == "new for all"
    assert lab.ledger.count("op") == 3
    assert lab.execution().generation == 1


def test_patches_are_independent_and_are_asked_in_loops(lab: Lab) -> None:
    seen: list[list[bool]] = []

    def body(ctx: DurableContext) -> None:
        here = []
        for number in range(3):
            here.append(ctx.patched("one"))
            ctx.step(f"step-{number}", lambda: None)
            here.append(ctx.patched("two"))
        seen.append(here)
        if len(seen) == 1:
            raise Crash

    lab.crash(body)
    lab.run(body)
    assert seen == [[True] * 6] * 2


def test_a_patch_in_the_new_generation_of_a_changed_body_is_true(lab: Lab) -> None:
    op = lab.operation("op")

    def then(ctx: DurableContext) -> None:
        ctx.step("a", op)
        ctx.step("x", op)
        raise Crash

    lab.crash(then)
    # At "patched" the journal goes on, so the old path is taken; it is another one, and the body starts anew.
    assert lab.run(with_patch(op)) == "new"
    assert lab.execution().generation == 2
