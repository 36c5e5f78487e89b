"""Decisions about steps in doubt: the audit in the journal, and the announcement of what a policy decided alone
(G2).
"""

from __future__ import annotations

import logging
from typing import Any

from celery_durable.effects import DID_NOT_HAPPEN, UNKNOWN, Happened
from celery_durable.signals import ambiguity_decided
from celery_durable.store.records import EntryKind

from .actions import Decision, Surroundings
from .call import StepCall

__all__ = ["announce", "audit", "audit_verdict"]

logger = logging.getLogger(__name__)


def audit(call: StepCall, attempts: int, reason: str, decision: str, around: Surroundings) -> None:
    """Record which policy decided what. If that leaves nothing to an operator, people are notified as well.

    :param decision: ``skip``, ``rerun``, or ``fail``, which decides nothing.
    """
    _write(call, attempts, reason, decision, around)
    if decision != "fail":
        around.decided(call, Decision(decision, decision))


def audit_verdict(call: StepCall, attempts: int, reason: str, verdict: Any, around: Surroundings) -> None:
    """The same for what a reconcile callable returned or raised."""
    said = "unknown"
    if isinstance(verdict, Happened):
        said = "happened"
    elif verdict is DID_NOT_HAPPEN:
        said = "did_not_happen"
    raised = "" if said != "unknown" or verdict is UNKNOWN else f", it raised {type(verdict).__name__}: {verdict}"
    _write(call, attempts, reason, f"reconcile: {said.replace('_', ' ')}{raised}", around)
    around.decided(call, Decision("reconcile", said))


def _write(call: StepCall, attempts: int, reason: str, decision: str, around: Surroundings) -> None:
    payload = around.encode({"reason": reason, "decision": decision}, call.where)
    around.append(call.entry(EntryKind.AUDIT, attempt=attempts, payload=payload))


def announce(task: Any, call: StepCall, decision: Decision) -> None:
    """Announce what a policy decided in doubt, without a value: one log record at WARNING, and the signal.

    :param task: whose body asked for the step.
    """
    logger.warning(
        "%s[%s]: nobody knows whether guarded step %r (position %s, idempotency key %s) happened; its policy %s has "
        "decided: %s",
        task.name,
        call.execution_id,
        call.descriptor.name,
        call.place,
        call.key.hex(),
        decision.policy,
        decision.decision,
    )
    ambiguity_decided.send(
        sender=task,
        execution_id=call.execution_id,
        step=call.descriptor.name,
        step_id=call.place,
        key=call.key,
        policy=decision.policy,
        decision=decision.decision,
    )
