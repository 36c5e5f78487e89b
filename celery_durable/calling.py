"""Work that a body leaves to others: the part of :class:`~celery_durable.DurableContext` that starts child tasks, and
does things for many items at once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from celery.canvas import Signature

from . import children
from .calls import Call
from .children import Member
from .durations import Duration, milliseconds
from .errors import ConfigurationError
from .identity import child_id, wait_print
from .step import check_name

if TYPE_CHECKING:
    from celery import Celery

    from .parallel import Parallel
    from .run import Run
    from .scope import ScopeState
    from .waits import Wait

__all__ = ["CallingContext"]

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class _AsyncEach(Protocol[T_contra, R_co]):
    def __call__(self, item: T_contra, /) -> Coroutine[Any, Any, R_co]: ...


class CallingContext:
    """Child tasks, and branches for many items. In ``async def`` code they are awaited: ``await ctx.call(...)``."""

    _run: Run

    if TYPE_CHECKING:

        def _here(self) -> ScopeState: ...
        def _wait(self, wait: Wait) -> Any: ...
        def parallel(self, *, max_workers: int | None = None) -> Parallel: ...

    # -- child tasks ----------------------------------------------------------------------------------------

    def call(self, signature: Signature, *, timeout: Duration | None = None, name: str | None = None) -> Any:
        """Have a task done, and go on with its result. No worker is held meanwhile.

        Any signature: of a durable task or any other one, a chain, a chord. A group gives the list of its results.

        :param timeout: seconds, or a timedelta, from the start of the child; None: it may take for ever.
        :param name: what the journal calls it, 1 to 200 characters; default: the task's name. A child's id is made of
            it.
        :returns: what the task returned; in ``async def`` code an awaitable of it.
        :raises ChildFailed: the task failed; its ``error`` is the exception.
        :raises ChildCancelled: it was revoked or cancelled.
        :raises ChildTimeout: it had not ended in time, and was cancelled.
        :raises ConfigurationError: for what cannot be called.
        :raises FingerprintError: for an argument without canonical form.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        checked = children.check_signature(self._app(), signature, "call()")
        several = children.members_of(checked)
        if several is not None:
            if not several:
                raise ConfigurationError("call() of an empty group: there is nothing to wait for.")
            return self._wait(Call([self._member(one, "call()", timeout, name) for one in several]))
        return self._wait(Call([self._member(checked, "call()", timeout, name)], single=True))

    def gather(
        self,
        *signatures: Signature,
        concurrency: int | None = None,
        until: Literal["all", "first"] | int = "all",
        tolerate: int = 0,
        timeout: Duration | None = None,
    ) -> Any:
        """Have several tasks done at once.

        :param signatures: as for :meth:`call`.
        :param concurrency: how many are under way at the same time; None: all.
        :param until: goes on when all have ended; when the ``"first"``, or so many, have succeeded. Those that are not
            needed any more are cancelled.
        :param tolerate: so many may fail.
        :param timeout: of each one, from its start.
        :returns: the list of their results, in the order of the signatures. In the place of a task that failed stands
            its :class:`ChildFailed`, in the place of one that was not needed a :class:`ChildCancelled`. In ``async
            def`` code an awaitable of it.
        :raises ChildFailed: of the task by whose failure more have failed than are tolerated, or too few can succeed.
        :raises ConfigurationError, FingerprintError: as :meth:`call`, and for numbers that make no sense.
        """
        needed = _until(until, len(signatures))
        if concurrency is not None:
            _check_count(concurrency, "gather(concurrency=", 1)
        _check_count(tolerate, "gather(tolerate=", 0)
        app = self._app()
        checked = [children.check_signature(app, one, "gather()") for one in signatures]
        for one in checked:
            if children.members_of(one) is not None:
                raise ConfigurationError("gather() takes no groups: pass the tasks of the group, gather(*group.tasks).")
        members = [self._member(one, "gather()", timeout, None) for one in checked]
        return self._wait(Call(members, until=needed, tolerate=tolerate, concurrency=concurrency))

    def _member(self, signature: Any, what: str, timeout: Duration | None, name: str | None) -> Member:
        """A child, with the id that it has in every run of this body."""
        signature = children.check_signature(self._app(), signature, what)
        name = children.name_of(signature) if name is None else name
        check_name(name, "a child's name")
        timeout_ms = None if timeout is None else milliseconds(timeout, f"{what[:-1]}timeout=)", least=1)
        scope = self._here()
        number = scope.occurrence(wait_print("call", name))
        known = child_id(self._namespace_of_children(), self._execution_of_children(), scope.lane, name, number)
        return Member(signature, name, known, children.fingerprint(name, signature), timeout_ms, scope.lane, number)

    def _app(self) -> Celery:
        assert self._run.children is not None
        return self._run.children.app

    def _namespace_of_children(self) -> str:
        return self._run.namespace

    def _execution_of_children(self) -> str:
        return self._run.execution_id

    # -- branches -------------------------------------------------------------------------------------------

    @overload
    def map(  # type: ignore[overload-overlap]
        self, function: _AsyncEach[T, R], items: Iterable[T], *, concurrency: int | None = None
    ) -> Coroutine[Any, Any, list[R]]: ...

    @overload
    def map(self, function: Callable[[T], R], items: Iterable[T], *, concurrency: int | None = None) -> list[R]: ...

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], *, concurrency: int | None = None) -> Any:
        """Do ``function(item)`` for each item, in a branch of its own, as :meth:`parallel` does.

        :param function: a step, or any function that does steps and waits. A coroutine function gives an awaitable.
        :param items: the same ones in the same order on every replay.
        :param concurrency: how many at the same time; default 8 threads, and all coroutines.
        :returns: the results, in the order of the items.
        :raises: the first error, in the order of the items, after all branches have ended.
        """
        if concurrency is not None:
            _check_count(concurrency, "map(concurrency=", 1)
        if not callable(function):
            raise ConfigurationError(f"map() takes a function and the items to call it with, not {function!r}.")
        if not isinstance(items, Iterable):
            raise ConfigurationError(f"map() takes the items as a list or another iterable, not {items!r}.")
        if inspect.iscoroutinefunction(getattr(function, "operation", function)):
            return self._map_async(function, list(items), concurrency)
        with self.parallel(max_workers=concurrency) as branches:
            made = [branches.submit(function, item) for item in items]
        return [branch.result() for branch in made]

    async def _map_async(self, function: Callable[[Any], Any], items: list[Any], concurrency: int | None) -> list[Any]:
        room = asyncio.Semaphore(concurrency or max(len(items), 1))

        async def one(item: Any) -> Any:
            async with room:
                return await function(item)

        async with self.parallel() as branches:
            made = [branches.submit(one, item) for item in items]
        return [branch.result() for branch in made]


def _check_count(number: object, what: str, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ConfigurationError(f"{what}{number!r}): it is a whole number, {least} or more.")


def _until(until: object, total: int) -> int | None:
    if until == "all":
        return None
    needed = 1 if until == "first" else until
    if isinstance(needed, bool) or not isinstance(needed, int) or not 1 <= needed <= total:
        raise ConfigurationError(
            f"gather(until={until!r}) of {total} task(s): it is 'all', 'first', or how many must "
            f"succeed, at most {total}."
        )
    return needed
