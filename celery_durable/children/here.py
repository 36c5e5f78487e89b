"""Child tasks that run here and now: in eager mode, and in a body that was called directly."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from celery import Task, states
from celery.exceptions import NotRegistered
from celery.result import allow_join_result

from celery_durable.common.coroutines import run_to_end
from celery_durable.errors import ConfigurationError

from .members import Member

__all__ = ["Ended", "call_here", "run_here"]


class Ended(NamedTuple):
    """What became of a child that ran here and now."""

    value: Any = None
    error: BaseException | None = None
    cancelled: bool = False


def run_here(member: Member) -> Ended:
    """Run a child to its end, here and now."""
    signature = member.signature.clone()
    if not signature.get("subtask_type"):
        signature.options["task_id"] = member.task_id
    # A chain takes the results of its tasks, which are there already.
    with allow_join_result():
        try:
            result = signature.apply()
        except NotRegistered as unknown:
            raise ConfigurationError(
                f"the child {member.name!r} cannot run: no task {unknown!s} is registered in this process. In eager "
                "mode a child runs where its parent does: import the module that defines it."
            ) from None
    if result.state == states.SUCCESS:
        return Ended(result.result)
    if result.state == states.REVOKED:
        return Ended(cancelled=True)
    error = result.result
    if not isinstance(error, Exception):
        error = RuntimeError(f"its run ended without a result, in state {result.state}")
    return Ended(error=error)


def call_here(member: Member) -> Ended:
    """The same for a body that was called directly: a task is called directly, too."""
    signature = member.signature
    if signature.get("subtask_type") or not isinstance(signature.type, Task):
        return run_here(member)
    try:
        value = signature.type(*signature.args, **signature.kwargs)
        return Ended(run_to_end(value) if inspect.iscoroutine(value) else value)
    except Exception as error:
        return Ended(error=error)
