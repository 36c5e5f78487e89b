"""What the worker's main process knows of a message, and tells the journal."""

from __future__ import annotations

from typing import Any

from celery.worker import state
from celery.worker.request import Request

from ..envelope import RAW_KEY
from .control import control_of

__all__ = ["DurableRequest"]


class DurableRequest(Request):
    """Celery's request, for durable tasks.

    A killed child needs nothing here: the recovery service sees its connection end. What nobody else sees is a hard
    time limit: Celery marks the task failed in this process, and the execution must not come back.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # The body's process must be able to store the message in the form in which it came. It is sent there anyhow.
        if self.content_type and isinstance(self.body, (str, bytes)):
            self.request_dict[RAW_KEY] = (self.content_type, self.content_encoding, self.body)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit was reached. The hard one ends the execution, before the child can give it back."""
        # In a cold stop Celery ends the children by the same way, and puts their messages back.
        stopping: Any = state.should_terminate
        if not soft and not stopping and _ends_on_timeout(self.task):
            reason = f"the hard time limit of {timeout} s was exceeded"
            control_of(self.task.app).fail(str(self.id), reason, "TimeLimitExceeded", timeout)
        super().on_timeout(soft, timeout)


def _ends_on_timeout(task: Any) -> bool:
    """False where the application wants a task that ran out of time to be requeued; 5.7 renamed that option."""
    option = getattr(task, "acks_on_timeout", None)
    return bool(option if option is not None else getattr(task, "acks_on_failure_or_timeout", True))
