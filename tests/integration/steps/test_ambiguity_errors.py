"""Exceptions of guarded operations: some are ordinary, the others are lost knowledge."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    AmbiguousEffect,
    DurableContext,
    Happened,
    OnAmbiguous,
    Retry,
    current_step,
)
from celery_durable.effects import UNSET
from celery_durable.store.records import EntryKind, State
from tests.integration.charging import RAISED, Declined, Timeout, charge_once, charging, raising
from tests.support.lab import Crash, Lab, Parked, everywhere

# -- exceptions of the operation --------------------------------------------------------------------------------


def test_an_exception_under_rerun_is_ordinary_and_tried_again_with_the_same_key(lab: Lab) -> None:
    keys = set()
    errors = [Timeout("no answer"), Timeout("no answer")]

    def charge(cents: int) -> str:
        keys.add(current_step().idempotency_key)
        lab.ledger.fire("charge")
        if errors:
            raise errors.pop()
        return "real"

    body = charge_once(charging(OnAmbiguous.RERUN, retry=Retry(3, backoff=0)), charge)
    assert lab.run(body) == "real"
    assert (lab.ledger.count("charge"), len(keys)) == (3, 1)
    assert lab.audits() == []


@pytest.mark.parametrize("policy", [OnAmbiguous.RERUN, OnAmbiguous.SKIP])
def test_an_exception_that_escapes_under_rerun_and_skip_fails_the_execution(lab: Lab, policy: OnAmbiguous) -> None:
    assumed = "assumed" if policy is OnAmbiguous.SKIP else UNSET
    body = charge_once(charging(policy, assumed=assumed), lab.operation("charge", "real", Timeout("no answer")))
    with pytest.raises(Timeout, match="no answer"):
        lab.run(body)
    assert lab.state() is State.FAILED


@pytest.mark.parametrize("policy", [OnAmbiguous.FAIL, lambda handle, cents: pytest.fail("was asked")])
def test_a_definite_exception_is_ordinary(lab: Lab, policy: Any) -> None:
    definite = charging(policy, definite=Declined, retry=Retry(3, backoff=0, give_up_on=KeyError))
    op = lab.operation("charge", "real", Declined("no"), Declined("no"))
    assert lab.run(charge_once(definite, op)) == "real"
    assert lab.ledger.count("charge") == 3


def test_a_definite_exception_that_escapes_fails_the_execution(lab: Lab) -> None:
    body = charge_once(charging(OnAmbiguous.FAIL, definite=Declined), lab.operation("charge", "real", Declined("no")))
    with pytest.raises(Declined):
        lab.run(body)
    assert lab.state() is State.FAILED
    assert lab.parked == []


@everywhere
def test_an_indefinite_exception_that_escapes_under_fail_parks(lab: Lab) -> None:
    op = lab.operation("charge", "real", Timeout("no answer"))
    assert lab.parks(charge_once(charging(OnAmbiguous.FAIL, retry=Retry(5, backoff=0)), op)) == RAISED
    assert lab.ledger.count("charge") == 1
    assert lab.state() is State.AMBIGUOUS
    [audit] = lab.audits()
    assert (audit["decision"], audit["error"]) == ("parked", "Timeout")
    assert lab.parked == [("one", "ambiguous", lab.reason())]


@everywhere
def test_an_indefinite_exception_that_the_body_handles_settles_the_intent(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Timeout("no answer"))

    def body(ctx: DurableContext) -> str:
        try:
            return str(ctx.step(fail, op, 5))
        except Timeout as error:
            return f"{ctx.step('after', after)} {error}"

    after = lab.operation("after", "gave up:", Crash())
    lab.crash(body)
    assert lab.run(body) == "gave up: no answer"
    assert lab.ledger.count("charge") == 1
    assert lab.entries() == ["0 INTENT charge", "0 ERROR charge", "1 RESULT after"]


@pytest.mark.parametrize(("verdict", "value", "fired"), [(Happened("found"), "found", 1), (DID_NOT_HAPPEN, "real", 2)])
def test_reconcile_is_asked_before_an_indefinite_exception_is_tried_again(
    lab: Lab, verdict: Any, value: str, fired: int
) -> None:
    step = charging(lambda handle, cents: verdict, retry=Retry(2, backoff=0))
    op = lab.operation("charge", "real", Timeout("no answer"))
    assert lab.run(charge_once(step, op)) == value
    assert lab.ledger.count("charge") == fired
    said = "happened" if fired == 1 else "did not happen"
    assert lab.audits() == [{"reason": "it raised Timeout: no answer", "decision": f"reconcile: {said}"}]


@pytest.mark.parametrize("ask", [lambda handle, cents: UNKNOWN, raising, lambda handle, cents: None])
def test_an_indefinite_exception_parks_where_reconcile_does_not_know(lab: Lab, ask: Any) -> None:
    op = lab.operation("charge", "real", Timeout("no answer"))
    assert lab.parks(charge_once(charging(ask, retry=Retry(5, backoff=0)), op)) == RAISED
    assert lab.ledger.count("charge") == 1


# -- under Celery's retries -------------------------------------------------------------------------------------


def test_autoretry_does_not_retry_lost_knowledge(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Crash())
    task = lab.task("retrying", lambda self: self.durable.step(fail, op, 5), autoretry_for=(Exception,))
    with pytest.raises(Crash):
        lab.apply(task)
    with pytest.raises(Parked):
        lab.apply(task)
    assert lab.state() is State.AMBIGUOUS
    assert lab.execution().retries == 0
    assert lab.ledger.count("charge") == 1


def test_autoretry_does_not_retry_an_indefinite_exception(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Timeout("no answer"))
    task = lab.task("retrying", lambda self: self.durable.step(fail, op, 5), autoretry_for=(Exception,))
    with pytest.raises(Parked, match=r"raised Timeout\. That"):
        lab.apply(task)
    assert lab.ledger.count("charge") == 1


def test_autoretry_does_retry_a_definite_exception(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL, definite=Declined)
    op = lab.operation("charge", "real", Declined("no"), Declined("no"))
    task = lab.task(
        "retrying", lambda self: self.durable.step(fail, op, 5), autoretry_for=(Exception,), retry_backoff=False
    )
    assert lab.apply(task) == "real"
    assert lab.ledger.count("charge") == 3


def test_an_explicit_retry_with_a_doubt_in_hand_parks(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Timeout("no answer"))

    def body(self: Any) -> Any:
        try:
            return self.durable.step(fail, op, 5)
        except Timeout as error:
            raise self.retry(exc=error) from error

    with pytest.raises(Parked, match=r"raised Timeout\. That"):
        lab.apply(lab.task("retrying", body))
    assert lab.state() is State.AMBIGUOUS
    assert lab.ledger.count("charge") == 1


def test_an_explicit_retry_because_of_a_handled_doubt_fails_at_once(lab: Lab) -> None:
    """Every further try would meet the same journaled error."""
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Crash())

    def body(self: Any) -> Any:
        try:
            return self.durable.step(fail, op, 5)
        except AmbiguousEffect as error:
            self.durable.step("after", lambda: None)
            raise self.retry(exc=error) from error

    task = lab.task("retrying", body)
    with pytest.raises(Crash):
        lab.apply(task)
    with pytest.raises(AmbiguousEffect):
        lab.apply(task)
    assert lab.state() is State.FAILED


# -- several doubts ---------------------------------------------------------------------------------------------


def test_several_doubts_are_parked_together_and_settled_one_by_one(lab: Lab) -> None:
    op = lab.operation("charge", "real", Timeout("no answer"), Timeout("no answer"))
    fail = charging(OnAmbiguous.FAIL)

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel(max_workers=1) as branches:
            two = [branches.step(fail, op, number) for number in (1, 2)]
        return [branch.result() for branch in two]

    with pytest.raises(Parked):
        lab.run(body)
    assert [line.count("raised Timeout") for line in lab.reason().splitlines()] == [1, 1]
    [left] = lab.settle("0.0/0", EntryKind.RESULT, "first")
    assert (left.place, left.name) == ("0.1/0", "charge")
    assert lab.state() is State.AMBIGUOUS
    assert lab.settle("0.1/0", EntryKind.RESULT, "second") == []
    assert lab.run(body) == ["first", "second"]
    assert lab.ledger.count("charge") == 2
