"""The task base class: ``@app.task(base=DurableTask)``, or ``Celery(task_cls=DurableTask)``."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import Ignore, Reject

from . import starting
from .coroutines import run_to_end
from .current import active
from .install import install
from .plain import PlainContext, call_plainly
from .session import Session, current_session
from .signature import DurableSignature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery
    from celery.result import AsyncResult, EagerResult

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

    # -- calling it -----------------------------------------------------------------------------------------

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *more: Any,
        durable_id: str | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """As Celery's; with a ``durable_id`` the call is done once.

        :param durable_id: names the call, and becomes its task id: 1 to 255 printable characters. The execution is
            recorded before the message is published. If this very call was made before, nothing is sent, whatever has
            become of it, and its result is returned.
        :raises DurableIdConflict: when the id belongs to a call with other arguments, or of another task.
        :raises ConfigurationError: for what cannot be an id, and in the header of a chord.
        :raises FingerprintError: for an argument by which calls cannot be compared.
        :raises JournalUnavailable: when it could not be recorded; then it was not accepted.
        """
        if durable_id is not None:
            task_id = starting.one_id(durable_id, task_id)
            options["durable_id"] = durable_id
        result: AsyncResult[Any] = super().apply_async(args, kwargs, task_id, *more, **options)  # type: ignore[arg-type]
        return result

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        *more: Any,
        durable_id: str | None = None,
        **options: Any,
    ) -> EagerResult[Any]:
        """As Celery's: run it here and now. ``durable_id`` and its errors are those of :meth:`apply_async`."""
        if durable_id is not None:
            task_id = starting.one_id(durable_id, task_id)
            starting.record_eager(self, durable_id, args, kwargs, options.get("serializer"))
        result: EagerResult[Any] = super().apply(args, kwargs, link, link_error, task_id, *more, **options)  # type: ignore[arg-type]
        return result

    def signature(self, args: Sequence[Any] | None = None, *more: Any, **options: Any) -> DurableSignature:
        """As Celery's; takes a ``durable_id`` too, and so does its ``set()``."""
        options.setdefault("app", self.app)
        return DurableSignature(self, args, *more, **options).named()  # type: ignore[arg-type]

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> DurableSignature:
        """As Celery's: ``signature(args, kwargs)``."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> DurableSignature:
        """As Celery's: a signature that takes no results of others."""
        return self.signature(args, kwargs, immutable=True)

    # -- running it -----------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: durably for a message, plainly for a direct call and for Celery's own tasks."""
        request = self.request
        if self.name.startswith("celery."):
            return self.run(*args, **kwargs)
        if request.called_directly:
            return call_plainly(self.run, PlainContext(app=lambda: self.app), args, kwargs)
        outer = current_session()
        if request.is_eager and outer is not None and outer.request.id == request.id:
            # Task.replace in an eager run: the other task goes on in this body, whose value is its value.
            value = self.run(*args, **kwargs)
            return run_to_end(value) if inspect.iscoroutine(value) else value
        try:
            return Session(self, request).execute(args, kwargs)
        except (Ignore, Reject) as leaving:
            # Celery copies every frame that an exception went through, and those of its causes, and sends them to the
            # pool's parent, which looks at none. For a body that waits, that would be most of what its wait costs.
            _strip(leaving)
            raise leaving.with_traceback(None)  # noqa: B904  (a bare raise keeps the old one)

    @property
    def durable(self) -> DurableContext:
        """The durable side of the running body. In a direct call, one whose steps are plain calls.

        It belongs to the thread or coroutine of the body and to its parallel branches. A thread that the body starts
        itself is outside: there it is as in a direct call.
        """
        here = active.get()
        return here.context if here is not None else PlainContext(app=lambda: self.app)

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


def _strip(error: BaseException | None) -> None:
    """Free an exception, and those behind it, of the frames that hold them."""
    while error is not None:
        behind = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = behind
