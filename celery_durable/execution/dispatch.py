"""What Celery does with an execution's outcome: it stores it, and sends what follows."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery import Task, states
from celery.signals import task_success

from celery_durable.store.records import State

__all__ = ["celery_knows", "is_followed", "name_callbacks"]

logger = logging.getLogger(__name__)


def name_callbacks(request: Any) -> None:
    """Callbacks get ids that a second dispatch repeats, so that durable ones among them run once."""
    for kind in ("callbacks", "errbacks"):
        for number, signature in enumerate(getattr(request, kind, None) or ()):
            if not isinstance(signature, dict) or signature.get("subtask_type") is not None:
                continue
            options = signature.setdefault("options", {})
            if options.get("durable_id"):
                options["task_id"] = options["durable_id"]
            if not options.get("task_id"):
                name = f"celery_durable:{request.id}:{kind}:{number}"
                options["task_id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def is_followed(task: Task[Any, Any], request: Any) -> bool:
    """Whether anything follows from the body's value: a result, callback, chain or chord, or a hook of its task.

    Where nothing does, the execution is over with its last commit: whether Celery has heard of it makes no difference.
    """
    kind = type(task)
    return bool(
        not (request.ignore_result or task.ignore_result)
        or (request.callbacks or request.chain or request.chord or request.group)
        or kind.on_success is not Task.on_success
        or kind.after_return is not Task.after_return
        or task_success.receivers
    )


def celery_knows(task: Task[Any, Any], request: Any, state: State) -> bool | None:
    """Whether the result backend has this outcome, and all has been done that Celery does because of it.

    :returns: None if the backend does not answer: it could not be notified now.
    """
    if request.ignore_result:
        return False
    try:
        if task.backend.as_uri().startswith(("disabled", "rpc")):
            return False
        status = task.backend.get_task_meta(request.id, cache=False)["status"]
    except Exception as error:
        logger.debug("the result backend cannot be asked: %s", error)
        return None
    if request.chord:
        return False  # its part is counted after that
    if state is State.COMPLETED:
        return bool(status == states.SUCCESS)  # callbacks are sent before that
    # And those of a failure after it, as are the later links of its chain.
    return bool(state is State.FAILED and status == states.FAILURE and not (request.errbacks or request.chain))
