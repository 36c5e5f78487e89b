"""What Celery does with an execution's outcome: it stores it, and sends what follows."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery import Task, states
from celery.signals import task_success

from .runtime import Returning
from .store.records import State

if TYPE_CHECKING:
    from .runtime import Runtime

__all__ = ["announce", "celery_knows", "is_followed", "name_callbacks"]

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


def announce(runtime: Runtime, request: Any, pk: int) -> None:
    """The outcome goes to Celery now; it is marked when Celery has done with it."""
    callbacks = any(getattr(request, name, None) for name in ("callbacks", "errbacks", "chain", "chord"))
    runtime.returning[request.id] = Returning(pk, callbacks)


def celery_knows(task: Task[Any, Any], request: Any, state: State) -> bool:
    """Whether the result backend has this outcome: Celery stores it after it has sent the callbacks.

    A chord counts its parts after that, so that a member's outcome says nothing of its part.
    """
    if request.chord or request.ignore_result:
        return False
    wanted = {State.COMPLETED: states.SUCCESS, State.FAILED: states.FAILURE}.get(state)
    try:
        if task.backend.as_uri().startswith(("disabled", "rpc")):
            return False
        return bool(task.backend.get_task_meta(request.id, cache=False)["status"] == wanted)
    except Exception as error:
        logger.debug("the result backend cannot be asked: %s", error)
        return False
