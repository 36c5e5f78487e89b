"""Whoever decides alone what became of a guarded step says so: once, with ids, and without a value."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_durable import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    DurableContext,
    Happened,
    Intent,
    OnAmbiguous,
    StepDescriptor,
    ambiguity_decided,
    get,
)
from tests.support.lab import Crash, Lab

SECRET = "4111 1111 1111 1111"


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    """What the signal has said."""
    found: list[dict[str, Any]] = []

    def hear(sender: Any, signal: Any, **facts: Any) -> None:
        found.append({"task": sender.name, **facts})

    ambiguity_decided.connect(hear, weak=False)
    yield found
    ambiguity_decided.disconnect(hear)


def says(verdict: Any) -> Callable[..., Any]:
    def reconcile(handle: Any, card: str) -> Any:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return reconcile


DECISIONS: dict[str, tuple[Any, str, str]] = {
    "skip": (OnAmbiguous.SKIP, "skip", "skip"),
    "rerun": (OnAmbiguous.RERUN, "rerun", "rerun"),
    "happened": (says(Happened(SECRET)), "reconcile", "happened"),
    "did not happen": (says(DID_NOT_HAPPEN), "reconcile", "did_not_happen"),
    "unknown": (says(UNKNOWN), "reconcile", "unknown"),
    "raises": (says(ValueError(SECRET)), "reconcile", "unknown"),
}


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("form", ["plain", "coroutine"])
def test_a_policy_that_decides_alone_says_so_once(
    lab: Lab, told: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, kind: str, form: str
) -> None:
    policy, name, decision = DECISIONS[kind]
    assumed = {"assumed": SECRET} if policy is OnAmbiguous.SKIP else {}
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=policy, **assumed)
    dies = [Crash()]

    def operate(card: str) -> str:
        if dies:
            raise dies.pop()
        return card

    async def operate_later(card: str) -> str:
        await asyncio.sleep(0)
        return operate(card)

    def plain(ctx: DurableContext) -> None:
        ctx.step("before", lambda: None)
        ctx.step(charge, operate, SECRET)

    async def coroutine(ctx: DurableContext) -> None:
        ctx.step("before", lambda: None)
        await ctx.step(charge, operate_later, SECRET)

    # Others may have set a level of their own in this process.
    caplog.set_level(logging.WARNING, logger="celery_durable")
    body = plain if form == "plain" else coroutine
    lab.crash(body)
    assert told == []
    if decision == "unknown":
        lab.parks(body)
    else:
        lab.run(body)
    step = next(s for s in get("one", app=lab.app).steps() if s.name == "charge")
    ids = {"execution_id": "one", "step": "charge", "step_id": "1", "key": step.key}
    assert told == [{"task": "job", **ids, "policy": name, "decision": decision}]
    [record] = [r for r in caplog.records if "nobody knows whether guarded step 'charge'" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "job[one]: nobody knows whether guarded step 'charge' (position 1, idempotency key "
        f"{step.key.hex()}) happened; its policy {name} has decided: {decision}"
    )


def test_an_error_that_reconcile_is_asked_about_is_told_too(lab: Lab, told: list[dict[str, Any]]) -> None:
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=says(Happened("receipt")))

    def operate(card: str) -> str:
        raise TimeoutError

    assert lab.run(lambda ctx: ctx.step(charge, operate, SECRET)) == "receipt"
    assert [fact["decision"] for fact in told] == ["happened"]


def test_what_is_left_to_an_operator_is_no_decision(lab: Lab, told: list[dict[str, Any]]) -> None:
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)

    def dies(card: str) -> None:
        raise Crash

    body = lambda ctx: ctx.step(charge, dies, SECRET)  # noqa: E731
    lab.crash(body)
    lab.parks(body)
    assert told == []


def test_a_listener_that_fails_changes_nothing(lab: Lab) -> None:
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)
    dies = [Crash()]

    def operate() -> str:
        if dies:
            raise dies.pop()
        return "receipt"

    def broken(**facts: Any) -> None:
        raise RuntimeError("the pager is away")

    ambiguity_decided.connect(broken, weak=False)
    try:
        body = lambda ctx: ctx.step(charge, operate)  # noqa: E731
        lab.crash(body)
        assert lab.run(body) == "receipt"
    finally:
        ambiguity_decided.disconnect(broken)
