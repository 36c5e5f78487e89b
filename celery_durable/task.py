"""The task base class: ``@app.task(base=DurableTask)``, or ``Celery(task_cls=DurableTask)``."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

from celery import Task

from .coroutines import run_to_end
from .current import active
from .install import install
from .plain import PlainContext, call_plainly
from .session import Session, current_session

if TYPE_CHECKING:
    from celery import Celery

    from .context import DurableContext

__all__ = ["DurableTask"]

logger = logging.getLogger(__name__)


class DurableTask(Task):  # type: ignore[type-arg]
    """A task whose executions are durable: a retry, a killed worker, a redelivered message or a deploy resumes it
    where it stopped.

    Late acknowledgement and requeueing on a lost worker are part of the protocol and forced on; how often an
    execution may be taken over is limited by ``durable_max_attempts``. Binding the task to its app installs
    everything else. The body may be an ``async def``.

    Called directly, a task is the plain function it was: it runs without a journal, and its steps are plain calls.
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    Request = "celery_durable.worker.request:DurableRequest"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        function = run.__func__ if isinstance(run, staticmethod) else run
        if inspect.iscoroutinefunction(function):
            driven = _synchronous(cls, function)
            setattr(cls, "run", staticmethod(driven) if isinstance(run, staticmethod) else driven)  # noqa: B010

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Connect the app's workers and publishers to the journal."""
        super().on_bound(app)
        if (cls.name or "").startswith("celery."):
            _as_celery_made_it(cls, app)
            return
        for option in ("acks_late", "reject_on_worker_lost"):
            if not getattr(cls, option):
                logger.warning(
                    "%s: %s=False is ignored; a durable task acknowledges late and is requeued when its worker is lost",
                    cls.name,
                    option,
                )
                setattr(cls, option, True)
        install(app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: durably for a message, plainly for a direct call and for Celery's own tasks."""
        request = self.request
        if self.name.startswith("celery."):
            return self.run(*args, **kwargs)
        if request.called_directly:
            return call_plainly(self.run, PlainContext(), args, kwargs)
        outer = current_session()
        if request.is_eager and outer is not None and outer.request.id == request.id:
            # Task.replace in an eager run: the other task goes on in this body, whose value is its value.
            value = self.run(*args, **kwargs)
            return run_to_end(value) if inspect.iscoroutine(value) else value
        return Session(self, request).execute(args, kwargs)

    @property
    def durable(self) -> DurableContext:
        """The durable side of the running body. In a direct call, one whose steps are plain calls.

        It belongs to the thread or coroutine of the body and to its parallel branches. A thread that the body starts
        itself is outside: there it is as in a direct call.
        """
        here = active.get()
        return here.context if here is not None else PlainContext()

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; but what a retry cannot cure is not tried again: it goes to an operator, or fails at once.

        :raises AmbiguousEffect, ResultLost: where one of them is the reason; every attempt would end with it.
        """
        session = current_session()
        if session is not None and session.task.name == self.name:
            given = kwargs.get("exc", args[2] if len(args) > 2 else None)
            session.before_retry(given if given is not None else sys.exc_info()[1])
        return super().retry(*args, **kwargs)


def _synchronous(owner: type[DurableTask], function: Any) -> Any:
    """An ``async def`` body for Celery to call: in a durable run it is driven to its end.

    It has to happen here, below ``autoretry_for``, which Celery wraps around ``run``.
    """

    @functools.wraps(function)
    def drive(*args: Any, **kwargs: Any) -> Any:
        coroutine = function(*args, **kwargs)
        session = current_session()
        if session is None or session.driving or not isinstance(session.task, owner):
            # Called directly, by whomever, it is a coroutine function, as it was written.
            return coroutine
        session.driving = True
        try:
            return run_to_end(coroutine)
        finally:
            session.driving = False

    return drive


def _as_celery_made_it(cls: type[DurableTask], app: Celery) -> None:
    """Celery's own tasks, which ``Celery(task_cls=DurableTask)`` makes of this class too, are not durable."""
    for option, setting in (
        ("acks_late", "task_acks_late"),
        ("reject_on_worker_lost", "task_reject_on_worker_lost"),
    ):
        if option not in vars(cls):
            setattr(cls, option, app.conf[setting])
    cls.Request = Task.Request
