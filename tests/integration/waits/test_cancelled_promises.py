"""Who answers for an execution that was cancelled is told so, and nothing of the answer is recorded."""

from __future__ import annotations

from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, Promise, PromiseSettled, StepDescriptor
from tests.support.commands import run as run_command
from tests.support.delivery import Delivery
from tests.support.lab import Lab, everywhere


class Approval:
    """A body that waits for an approval; with something to undo, if it is to have that."""

    def __init__(self, lab: Lab, *, saga: bool = False) -> None:
        self.lab = lab
        self.saga = saga
        self.promise: Promise

    def __call__(self, ctx: DurableContext) -> Any:
        if self.saga:
            ctx.step(StepDescriptor("hotel", compensate=self.lab.operation("undo")), self.lab.operation("hotel"))
        self.promise = ctx.promise("approval", heartbeat=1000)
        ctx.step("mail", self.lab.operation("mail"))
        return ctx.wait(self.promise)

    def answers(self) -> list[str]:
        """What each way to answer is told: its state, or nothing."""
        app, key = self.lab.app, (self.promise.id, self.promise.token)
        told = []
        for answer in (
            lambda: celery_durable.resolve(*key, "yes", app=app),
            lambda: celery_durable.reject(*key, "no", app=app),
            lambda: celery_durable.heartbeat(*key, app=app),
        ):
            try:
                answer()
            except PromiseSettled as error:
                told.append(error.state)
        return told


@everywhere
@pytest.mark.parametrize("saga", [False, True], ids=["at once", "when it is undone"])
def test_whoever_answers_is_told(lab: Lab, deliver: Delivery, saga: bool) -> None:
    body = Approval(lab, saga=saga)
    deliver.suspends(body)
    handle = celery_durable.get("one", lab.app)
    handle.cancel("not wanted any more")
    assert body.answers() == ["cancelled"] * 3
    key = (body.promise.id, "--token", body.promise.token)
    shown = run_command(lab.app, "promise", "resolve", *key, "--value", "1", fails=1)
    assert "was cancelled, so nobody waits for it" in shown.err
    if saga:
        with pytest.raises(Exception, match="cancelled"):
            deliver(body)
        assert lab.ledger.names() == ["hotel", "mail", "undo"]
        assert body.answers() == ["cancelled"] * 3


@everywhere
def test_a_rerun_that_shares_the_promise_makes_it_good_again(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    deliver.suspends(body)
    first = celery_durable.get("one", lab.app)
    first.cancel()
    assert body.answers() == ["cancelled"] * 3
    key = body.promise.id, body.promise.token
    first.rerun("mail", durable_id="two")
    celery_durable.heartbeat(*key, app=lab.app)
    celery_durable.resolve(*key, "yes", app=lab.app)
    celery_durable.resolve(*key, "yes", app=lab.app)  # said once more, because the answer was lost
    assert deliver(body, id="two") == "yes"
