"""The ambiguous window after a crash: a guarded operation was announced, and nobody knows what became of it.

The crash is a ``BaseException`` out of the operation, after its effect.
"""

from __future__ import annotations

import logging
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
from celery_durable.store.records import EntryKind, State
from tests.integration.charging import AFTER, BEFORE, OPEN, Declined, Timeout, charge_once, charging, raising
from tests.support.lab import Crash, Lab, everywhere

# -- a crash between intent and result --------------------------------------------------------------------------


@everywhere
def test_skip_goes_on_with_the_assumed_value_and_never_calls_again(lab: Lab) -> None:
    body = charge_once(charging(OnAmbiguous.SKIP, assumed="assumed"), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    assert lab.state() is State.PENDING
    assert lab.run(body) == "assumed"
    assert lab.ledger.count("charge") == 1
    assert lab.entries() == [*BEFORE, "1 INTENT charge", "1 AUDIT charge", "1 SKIPPED charge", *AFTER]
    assert lab.audits() == [{"reason": "an intent without a result", "decision": "skip"}]


def test_a_skipped_step_is_replayed_as_skipped(lab: Lab) -> None:
    skip = charging(OnAmbiguous.SKIP, assumed=("a", "tuple"))
    op = lab.operation("charge", None, Crash())
    records: list[Any] = []

    def body(ctx: DurableContext) -> None:
        records.append(ctx.step_recorded(skip, op, 5))
        if len(records) == 1:
            raise Crash

    lab.crash(body)
    lab.crash(body)
    lab.run(body)
    assert [(r.value, r.skipped, r.replayed) for r in records] == [
        (("a", "tuple"), True, False),
        (("a", "tuple"), True, True),
    ]
    assert lab.ledger.count("charge") == 1


@everywhere
def test_rerun_calls_again_with_the_same_key(lab: Lab) -> None:
    keys = []

    def charge(cents: int) -> str:
        keys.append(current_step().idempotency_key)
        lab.ledger.fire("charge")
        if len(keys) == 1:
            raise Crash
        return "real"

    body = charge_once(charging(OnAmbiguous.RERUN), charge)
    lab.crash(body)
    assert lab.run(body) == "real"
    assert lab.ledger.count("charge") == 2
    assert keys[0] == keys[1]
    assert lab.entries() == [
        *BEFORE,
        *["1 INTENT charge", "1 AUDIT charge", "1 INTENT charge", "1 RESULT charge"],
        *AFTER,
    ]
    assert lab.audits() == [{"reason": "an intent without a result", "decision": "rerun"}]


def test_lost_knowledge_uses_up_no_try_of_the_retry_policy(lab: Lab) -> None:
    once = charging(OnAmbiguous.RERUN, retry=Retry(2, backoff=0))
    op = lab.operation("charge", "real", Crash(), Crash(), Crash(), Timeout("no answer"))
    body = charge_once(once, op)
    for _ in range(3):
        lab.crash(body)
    assert lab.run(body) == "real"
    assert lab.ledger.count("charge") == 5


@everywhere
def test_fail_parks_the_execution_and_says_everything(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    body = charge_once(charging(OnAmbiguous.FAIL), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    with caplog.at_level(logging.ERROR, "celery_durable.signals"):
        assert lab.parks(body) == OPEN
    assert lab.state() is State.AMBIGUOUS
    assert lab.parked == [("one", "ambiguous", lab.reason())]
    assert f"job[one] is parked as ambiguous: {lab.reason()}" in caplog.messages
    assert [audit["decision"] for audit in lab.audits()] == ["fail", "parked"]
    assert lab.ledger.count("charge") == 1


def test_a_parked_execution_is_not_run_by_another_message(lab: Lab) -> None:
    body = charge_once(charging(OnAmbiguous.FAIL), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    lab.parks(body)
    entries = lab.entries()
    assert lab.parks(lambda ctx: pytest.fail("the body ran")) == OPEN
    assert lab.entries() == entries
    assert len(lab.parked) == 1


@pytest.mark.parametrize(
    ("kind", "given", "fired"),
    [(EntryKind.RESULT, "by hand", 1), (EntryKind.RUN_AGAIN, None, 2), (EntryKind.ERROR, Declined("no"), 1)],
)
@everywhere
def test_an_operator_settles_what_fail_has_parked(lab: Lab, kind: EntryKind, given: Any, fired: int) -> None:
    body = charge_once(charging(OnAmbiguous.FAIL), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    lab.parks(body)
    assert lab.settle("1", kind, given) == []
    if kind is EntryKind.ERROR:
        with pytest.raises(Declined, match="no"):
            lab.run(body)
        assert lab.state() is State.FAILED
    else:
        assert lab.run(body) == (given or "real")
        assert lab.state() is State.COMPLETED
    assert lab.ledger.count("charge") == fired
    assert lab.audits()[-1] == {"reason": "operator", "decision": kind.name}


def test_a_body_may_handle_the_doubt_and_replays_its_decision(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL)
    op = lab.operation("charge", "real", Crash())

    def body(ctx: DurableContext) -> str:
        try:
            ctx.step(fail, op, 5)
        except AmbiguousEffect as error:
            caught = error
        return ctx.step("after", lab.operation("after", "told the customer", Crash())) + f" {type(caught).__name__}"

    lab.crash(body)
    lab.crash(body)
    after = lab.operation("after", "told the customer")

    def same(ctx: DurableContext) -> str:
        try:
            ctx.step(fail, op, 5)
        except AmbiguousEffect as error:
            caught = error
        return f"{ctx.step('after', after)} {type(caught).__name__}"

    assert lab.run(same) == "told the customer AmbiguousEffect"
    assert lab.ledger.count("charge") == 1
    assert lab.entries() == ["0 INTENT charge", "0 AUDIT charge", "0 ERROR charge", "1 RESULT after"]
    assert lab.parked == []


# -- reconcile --------------------------------------------------------------------------------------------------


@everywhere
def test_reconcile_gets_the_handle_and_the_arguments_and_knows_the_value(lab: Lab) -> None:
    asked = []

    def ask(handle: Any, cents: int) -> Any:
        asked.append((handle.name, handle.attempt, handle.idempotency_key, current_step(), cents))
        return Happened({"receipt": cents})

    body = charge_once(charging(ask), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    assert lab.run(body) == {"receipt": 5}
    [(name, attempt, key, handle, cents)] = asked
    assert (name, attempt, cents) == ("charge", 1, 5)
    assert key == handle.idempotency_key == lab.rows()[1].key
    assert lab.ledger.count("charge") == 1
    assert lab.audits() == [{"reason": "an intent without a result", "decision": "reconcile: happened"}]


@everywhere
def test_reconcile_that_says_it_did_not_happen_runs_the_operation(lab: Lab) -> None:
    body = charge_once(charging(lambda handle, cents: DID_NOT_HAPPEN), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    assert lab.run(body) == "real"
    assert lab.ledger.count("charge") == 2
    assert lab.audits() == [{"reason": "an intent without a result", "decision": "reconcile: did not happen"}]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda handle, cents: UNKNOWN, "unknown"),
        (raising, "unknown, it raised ConnectionError: the gateway is away"),
        (
            lambda handle, cents: "nonsense",
            (
                "unknown, it raised TypeError: the reconcile callable of step 'charge' (position 1) returned "
                "'nonsense'; it must return Happened(value), DID_NOT_HAPPEN or UNKNOWN"
            ),
        ),
    ],
    ids=["unknown", "raises", "nonsense"],
)
def test_reconcile_that_does_not_know_is_as_fail(lab: Lab, ask: Any, said: str) -> None:
    body = charge_once(charging(ask), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    assert lab.parks(body) == OPEN
    assert lab.audits()[0] == {"reason": "an intent without a result", "decision": f"reconcile: {said}"}
    assert lab.ledger.count("charge") == 1


def test_reconcile_is_asked_anew_after_an_operator_resumed(lab: Lab) -> None:
    answers: list[Any] = [UNKNOWN, Happened("found now")]
    body = charge_once(charging(lambda handle, cents: answers.pop(0)), lab.operation("charge", "real", Crash()))
    lab.crash(body)
    lab.parks(body)
    lab.operations.resume("one")
    assert lab.run(body) == "found now"
    assert lab.ledger.count("charge") == 1
