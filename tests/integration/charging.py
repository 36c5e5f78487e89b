"""A guarded step among others, and what is said when nobody knows what became of it."""

from __future__ import annotations

from typing import Any

from celery_durable import DurableContext, Intent, StepDescriptor


class Timeout(Exception):
    """Nobody knows whether the card was charged."""


class Declined(Exception):
    """The card was not charged."""


def charging(policy: Any, **options: Any) -> StepDescriptor:
    return StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=policy, **options)


def charge_once(descriptor: StepDescriptor, op: Any) -> Any:
    def body(ctx: DurableContext) -> Any:
        ctx.step("before", lambda: None)
        value = ctx.step(descriptor, op, 5)
        ctx.step("after", lambda: None)
        return value

    return body


BEFORE = ["0 RESULT before"]
AFTER = ["2 RESULT after"]

DOUBT = (
    "guarded step 'charge' (position 1) of execution one is in doubt: {}. Nobody knows whether its effect happened, "
    "and its policy does not allow a guess. Look at the remote side (idempotency key KEY), then: celery durable "
    "resolve one 1 --value JSON | --run | --fail"
)
OPEN = DOUBT.format("an intent without a result")
RAISED = (
    "guarded step 'charge' (position 1) of execution one raised Timeout. That may hide a success, so it is "
    "not tried again. If Timeout always means that nothing happened, declare it: guarded(..., definite=(Timeout,)). "
    "Look at the remote side (idempotency key KEY), then: celery durable resolve one 1 --value JSON | --run | --fail"
)


def raising(handle: Any, cents: int) -> Any:
    raise ConnectionError("the gateway is away")
