"""The task base class: ``@app.task(base=DurableTask)``, or ``Celery(task_cls=DurableTask)``; and its decorator,
``@durable_task(app)``, after which a type checker knows the task's arguments and result.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, Protocol, cast, overload

from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Reject
from typing_extensions import ParamSpec, Self, TypeVar

from .app.installing import install
from .context.durable import DurableContext
from .context.plain import PlainContext, call_plainly
from .errors import ConfigurationError
from .execution.frames import free, without_ours
from .execution.outcome_delivery import hold_back
from .execution.session import Session, current_session
from .messaging.durable_id import one_id
from .messaging.signature import DurableSignature
from .messaging.start_once import record_eager
from .steps.current import active

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from celery.result import AsyncResult, EagerResult


__all__ = ["DurableTask", "durable_task"]

#: What the body takes, without ``self``, and what it returns. A plain ``DurableTask`` says neither.
P = ParamSpec("P", default=...)
R = TypeVar("R", covariant=True, default=Any)
#: The same of a function that is decorated.
Q = ParamSpec("Q")
S = TypeVar("S")

logger = logging.getLogger(__name__)

#: The journal's column.
_LONGEST_NAME: Final = 255


if TYPE_CHECKING:
    _Task = Task
else:
    # Not every release of Celery has a Task that can be subscripted: when it runs, the base is the class itself.
    _Task = {(P, R): Task}


class DurableTask(_Task[P, R]):
    """A task whose executions are durable: after a retry, a killed worker, a redelivered message or a deploy it resumes
    where it stopped.

    Late acknowledgement and requeueing on a lost worker are part of the protocol, and always on.
    ``durable_max_attempts`` limits how often an execution is taken over. Binding the task to its app installs
    everything else. The body may be an ``async def``.

    Called directly, a task is a plain function: it runs without a journal, and its steps are plain calls.

    ``DurableTask[[int], str]`` tells type checkers what the body takes and returns, as :func:`durable_task` does by
    itself. When it runs, it is ``DurableTask``.
    """

    #: The mark by which other modules recognize a durable task.
    _celery_durable = True
    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    Request = "celery_durable.worker.request:DurableRequest"

    def __class_getitem__(cls, what: Any) -> type[Self]:
        return cls

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        function = run.__func__ if isinstance(run, staticmethod) else run
        if inspect.iscoroutinefunction(function):
            driven = _synchronous(cls, function)
            setattr(cls, "run", staticmethod(driven) if isinstance(run, staticmethod) else driven)  # noqa: B010

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """As Celery's, for each class by itself.

        Whoever reads ``app`` on a class binds it: ``help()``, ``inspect.getmembers()``, a generator of documentation.
        Classes derived from it later would inherit that they are bound. They would then share one stack of requests,
        so that a direct call inside another task is taken for that task's message, and ignore ``task_annotations``.
        """
        # It belongs to no application: what it took from the settings of the current one, all tasks would inherit.
        if cls is DurableTask:
            return app
        if "__bound__" not in cls.__dict__:
            cls.__bound__ = False
        return super().bind(app)

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Connect the app's workers and publishers to the journal."""
        super().on_bound(app)
        if (cls.name or "").startswith("celery."):
            _as_celery_made_it(cls, app)
            return
        if len(cls.name or "") > _LONGEST_NAME:
            raise ConfigurationError(
                f"the name of task {cls.name[:40]!r}... has {len(cls.name)} characters; there is room for "
                f"{_LONGEST_NAME}. Give it a shorter one: name=."
            )
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
    ) -> AsyncResult[R]:
        """As Celery's; with a ``durable_id`` the call is made once.

        :param durable_id: names the call, and becomes its task id: 1 to 255 printable characters. The execution is
            recorded before the message is published. If the same call was made before, nothing is sent, whatever its
            state, and its result is returned.
        :raises DurableIdConflict: when the id belongs to a call with other arguments, or of another task.
        :raises ConfigurationError: for an invalid id, and for a member of a chord's header.
        :raises FingerprintError: for an argument without a canonical form.
        :raises JournalUnavailable: when the call could not be recorded, and so was not accepted.
        """
        if durable_id is not None:
            task_id = one_id(durable_id, task_id)
            options["durable_id"] = durable_id
        result: AsyncResult[R] = super().apply_async(args, kwargs, task_id, *more, **options)  # type: ignore[arg-type]
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
    ) -> EagerResult[R]:
        """As Celery's: run it here and now. ``durable_id`` and its errors are those of :meth:`apply_async`."""
        if durable_id is not None:
            task_id = one_id(durable_id, task_id)
            record_eager(self, durable_id, args, kwargs, options.get("serializer"))
        result: EagerResult[R] = super().apply(args, kwargs, link, link_error, task_id, *more, **options)  # type: ignore[arg-type]
        return result

    def signature(self, args: Sequence[Any] | None = None, *more: Any, **options: Any) -> DurableSignature[R]:
        """As Celery's; also takes a ``durable_id``, as does its ``set()``."""
        options.setdefault("app", self.app)
        return DurableSignature(self, args, *more, **options).named()  # type: ignore[arg-type]

    subtask = signature

    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> DurableSignature[R]: ...
    @overload
    def s(self: DurableTask[Concatenate[Any, Q], S], *args: Q.args, **kwargs: Q.kwargs) -> DurableSignature[S]: ...
    @overload
    def s(
        self: DurableTask[Concatenate[Any, Any, Any, Q], S], *args: Q.args, **kwargs: Q.kwargs
    ) -> DurableSignature[S]: ...
    def s(self, *args: Any, **kwargs: Any) -> DurableSignature[Any]:
        """As Celery's: ``signature(args, kwargs)``.

        For type checkers the arguments are those of the body. The first may be missing, which a chain or chord puts
        in, or the first three, which an errback gets.
        """
        return self.signature(args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> DurableSignature[R]:
        """As Celery's: an immutable signature."""
        return self.signature(args, kwargs, immutable=True)

    # -- running it -----------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the body: durably for a message, plainly for a direct call and for Celery's own tasks."""
        request = self.request
        if self.name.startswith("celery."):
            return self.run(*args, **kwargs)
        if request.called_directly:
            plain: R = call_plainly(self.run, PlainContext(app=lambda: self.app), args, kwargs)
            return plain
        outer = current_session()
        if request.is_eager and outer is not None and outer.request.id == request.id:
            # Task.replace in an eager run: the other task continues in this body, whose value is its value.
            other = self.run(*args, **kwargs)
            return cast("R", outer.drive(other)) if inspect.iscoroutine(other) else other
        session = Session(self, request)
        try:
            with session.runtime.database.running_here():
                value: R = session.execute(args, kwargs)
        except (Ignore, Reject) as leaving:
            # Celery copies every frame that an exception went through, and those of its causes, and sends them to the
            # pool's parent, which looks at none. For a body that waits, that would be most of what its wait costs.
            free(leaving)
            raise leaving.with_traceback(None)  # noqa: B904  (a bare raise keeps the old one)
        except Exception as error:
            without_ours(error)
            raise error.with_traceback(error.__traceback__)  # noqa: B904  (a bare raise keeps the old one)
        hold_back(session.runtime, self, request)
        return value

    @property
    def durable(self) -> DurableContext:
        """The durable context of the running body. In a direct call, its steps are plain calls.

        It belongs to the thread or coroutine of the body, and to its parallel branches. In a thread that the body
        starts by itself it is that of a direct call.
        """
        here = active.get()
        return PlainContext(app=lambda: self.app) if here is None else cast("DurableContext", here.context)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; but an error that a retry cannot cure is not retried: the execution is parked, or fails at once.

        :raises AmbiguousEffect, ResultLost: if one of them is the reason: every attempt would end with it.
        """
        session = current_session()
        if session is not None and session.task.name == self.name:
            given = kwargs.get("exc", args[2] if len(args) > 2 else None)
            session.before_retry(given if given is not None else sys.exc_info()[1])
        return super().retry(*args, **kwargs)


B = TypeVar("B", bound=DurableTask, covariant=True)

if TYPE_CHECKING:

    class CoroutineTask(DurableTask[P, R]):
        """Of an ``async def`` body: called directly it gives a coroutine, and everywhere else a result."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]
        def run(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]

    class Declares(Protocol):
        @overload
        def __call__(self, function: Callable[Q, Coroutine[Any, Any, S]], /) -> CoroutineTask[Q, S]: ...
        @overload
        def __call__(self, function: Callable[Q, S], /) -> DurableTask[Q, S]: ...

    class DeclaresBound(Protocol[B]):
        @overload
        def __call__(self, function: Callable[Concatenate[B, Q], Coroutine[Any, Any, S]], /) -> CoroutineTask[Q, S]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[B, Q], S], /) -> DurableTask[Q, S]: ...


@overload
def durable_task(function: Callable[Q, Coroutine[Any, Any, S]], /) -> CoroutineTask[Q, S]: ...
@overload
def durable_task(function: Callable[Q, S], /) -> DurableTask[Q, S]: ...
@overload
def durable_task(
    app: Celery[Any] | None = None, /, *, bind: Literal[True], base: type[B], **options: Any
) -> DeclaresBound[B]: ...
@overload
def durable_task(
    app: Celery[Any] | None = None, /, *, bind: Literal[True], **options: Any
) -> DeclaresBound[DurableTask]: ...
@overload
def durable_task(
    app: Celery[Any] | None = None, /, *, bind: Literal[False] = False, base: type[DurableTask] = ..., **options: Any
) -> Declares: ...
def durable_task(app: Any = None, /, *, bind: bool = False, base: Any = DurableTask, **options: Any) -> Any:
    """Declare a durable task whose arguments and result type checkers know.

    ``@durable_task(app, ...)`` does what ``@app.task(base=DurableTask, ...)`` does, and ``@durable_task(...)`` what
    ``@shared_task(base=DurableTask, ...)`` does. What differs is what mypy and pyright know: ``delay()``, ``s()``,
    ``si()`` and a direct call take the arguments of the body, and ``get()`` returns what it returns.

    :param app: the application; without one the task is of every application, as a shared task is.
    :param bind: the body takes the task as its first argument, ``self: DurableTask``.
    :param base: :class:`DurableTask`, or a subclass of it.
    :param options: Celery's: ``name``, ``autoretry_for``, ``max_retries`` and so on.
    :returns: a decorator; of a function, its task.
    :raises ConfigurationError: for a ``base`` that is not durable, and for what is no application.
    """
    if not (isinstance(base, type) and issubclass(base, DurableTask)):
        raise ConfigurationError(f"durable_task(base={base!r}): it takes a subclass of DurableTask.")
    options.update(bind=bind, base=base)
    if app is None:
        return shared_task(**options)
    if isinstance(app, Celery):
        return app.task(**options)
    if callable(app) and not isinstance(app, type):
        # @durable_task, without parentheses.
        return shared_task(**options)(app)
    raise ConfigurationError(
        f"durable_task() takes an application, or nothing, and not {app!r}. Write @durable_task(app, ...)."
    )


def _synchronous(owner: type[DurableTask], function: Any) -> Any:
    """An ``async def`` body for Celery to call: in a durable run it is driven to its end.

    It has to happen here, below ``autoretry_for``, which Celery wraps around ``run``.
    """

    @functools.wraps(function)
    def drive(*args: Any, **kwargs: Any) -> Any:
        coroutine = function(*args, **kwargs)
        session = current_session()
        if session is None or session.driving or not isinstance(session.task, owner):
            # Called directly, it is the coroutine function that was written.
            return coroutine
        session.driving = True
        try:
            return session.drive(coroutine)
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
