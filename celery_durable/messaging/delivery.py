"""One delivery of a message of a durable task, as data for everything that handles it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_durable.runtime import Runtime

from .stash import Stash

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Delivery", "stashing"]


class Delivery:
    """A message, the task whose body it asks for, and the owner that runs this body here.

    :param request: Celery's request of the task.
    """

    def __init__(self, task: Task[Any, Any], request: Any) -> None:
        self.task = task
        self.request = request
        self.eager = bool(request.is_eager)
        self.runtime = Runtime.of(task.app)
        self.owner = self.runtime.new_owner()
        #: The message that the body sent under its own id: a retry, or a task that replaces it.
        self.stash: Stash | None = None


#: The delivery whose body runs here: messages under its own id are held back until its state is committed.
stashing: ContextVar[Delivery | None] = ContextVar("celery_durable_delivery", default=None)
