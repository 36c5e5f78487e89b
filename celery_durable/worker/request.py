"""Events that only the worker's main process sees, and passes on to the journal."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from celery.worker import state
from celery.worker.request import Request
from kombu import serialization
from kombu.utils.imports import symbol_by_name

from celery_durable.errors import ConfigurationError
from celery_durable.messaging.envelope import RAW_KEY, serializer_of
from celery_durable.messaging.tasks import is_durable

from .control import control_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["DurableRequest", "adopt"]


class DurableRequest(Request):
    """Celery's request, for durable tasks.

    A killed child needs nothing here: the recovery service sees its connection end. But only this process sees a hard
    time limit: Celery marks the task failed here, and the execution must not be started again.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # The body's process must be able to store the message in its original form. It is passed there anyway.
        if self.content_type and isinstance(self.body, (str, bytes)):
            self.request_dict[RAW_KEY] = (self.content_type, self.content_encoding, self.body)
        elif isinstance(self.body, tuple):
            # Celery has already decoded it: in its old protocol the body holds the headers too. The serializer is
            # kept, because some can tell tuples from lists.
            name = serializer_of(getattr(message, "content_type", None))
            # If the serializer cannot write what it has read, the process of the body handles this.
            with contextlib.suppress(Exception):
                if name is not None:
                    self.request_dict[RAW_KEY] = serialization.dumps(self.body, serializer=name)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit was reached. The hard one ends the execution, before the child can give it back."""
        # In a cold stop Celery ends the children in the same way, and puts their messages back.
        stopping: Any = state.should_terminate
        if not soft and not stopping:
            control = control_of(self.task.app)
            if _ends_on_timeout(self.task):
                reason = f"the hard time limit of {timeout} s was exceeded"
                control.fail(str(self.id), reason, "TimeLimitExceeded", timeout)
            else:
                # Its message goes back to the queue, and its lease is given back, as if nothing were wrong.
                control.count(str(self.id))
        super().on_timeout(soft, timeout)


def adopt(app: Celery) -> None:
    """For durable tasks with their own ``Request`` class, use one that derives from both theirs and ours.

    :raises ConfigurationError: for a class with which this is impossible.
    """
    for name, task in app.tasks.items():
        if not is_durable(app, name):
            continue
        theirs: Any = symbol_by_name(task.Request)
        if isinstance(theirs, type) and issubclass(theirs, DurableRequest):
            continue
        try:
            setattr(task, "Request", _both(theirs))  # noqa: B010  (typed as a name)
        except TypeError as error:
            raise ConfigurationError(
                f"task {task.name!r}: Request = {theirs!r} cannot be used for a durable task ({error}). Derive it from "
                "celery_durable.worker.request.DurableRequest."
            ) from error


@functools.cache
def _both(theirs: type[Request]) -> type[DurableRequest]:
    return type(f"Durable{theirs.__name__}", (DurableRequest, theirs), {"__module__": __name__})


def _ends_on_timeout(task: Any) -> bool:
    """False if the application wants a task that ran out of time to be requeued; Celery 5.7 renamed that option."""
    option = getattr(task, "acks_on_timeout", None)
    return bool(option if option is not None else getattr(task, "acks_on_failure_or_timeout", True))
