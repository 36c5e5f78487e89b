"""Branches that run at the same time, each with positions of its own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast, overload

from celery_durable.common.coroutines import all_ended
from celery_durable.errors import ConfigurationError, ContextClosed, DurableError, StepLimitExceeded
from celery_durable.replay import divergence
from celery_durable.replay.leaving import Leave, Undoing, Waiting, together
from celery_durable.replay.read_ahead import Ahead
from celery_durable.replay.scope import ScopeState
from celery_durable.steps.current import Active, active
from celery_durable.steps.described import is_async
from celery_durable.steps.descriptor import StepDescriptor
from celery_durable.steps.interruption import is_hard_limit, is_interruption
from celery_durable.store.records import Entry, EntryKind, Journaled, StoredPayload

from .stepping import SteppingContext

__all__ = ["Branch", "Parallel"]

P = ParamSpec("P")
R = TypeVar("R")

_WORKERS: Final = 8
#: The journal's column for the path of a branch.
_LONGEST_PATH: Final = 200


class Branch(Generic[R]):
    """The outcome of one branch. In an ``async with`` scope it can be awaited."""

    def __init__(self, future: Future[R] | asyncio.Task[R], deliver: Callable[[], None]) -> None:
        self._future = future
        #: Says that whoever is here gets what went wrong in the branch.
        self._deliver = deliver
        self.seen = False

    def result(self) -> R:
        """The branch's value. Waits for it if the scope runs threads.

        :raises: what the branch raised.
        """
        try:
            return self._future.result()
        finally:
            self._was_asked()

    def __await__(self) -> Generator[Any, None, R]:
        future = self._future
        try:
            if isinstance(future, asyncio.Task):
                return (yield from future.__await__())
            return (yield from asyncio.wrap_future(future).__await__())
        finally:
            self._was_asked()

    def _was_asked(self) -> None:
        # A caller that is interrupted while it waits for a branch has not seen how it ends.
        if self.done:
            self.seen = True
            self._deliver()

    @property
    def done(self) -> bool:
        """True when :meth:`result` will not wait."""
        return self._future.done()


class Parallel:
    """A scope of branches, made by :meth:`DurableContext.parallel`.

    Leaving it waits for all branches. If a branch raised, and nobody asked for its result, its exception is raised
    then: the first one in the order in which the branches were made.
    """

    def __init__(
        self,
        context: SteppingContext,
        parent: ScopeState,
        position: int,
        rows: list[Journaled] | None,
        *,
        lane: int,
        max_workers: int | None,
        ahead: Ahead | None = None,
        stopped: bool = False,
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ConfigurationError(f"parallel(max_workers={max_workers!r}): at least one thread is needed.")
        self._context = context
        self._parent = parent
        self._position = position
        self._lane = lane
        self._ahead = ahead
        #: The body is stopped, and its journal ends here.
        self._stopped = stopped
        self._max_workers = max_workers or _WORKERS
        self._branches: list[Branch[Any]] = []
        self._scopes: list[ScopeState] = []
        self._pool: ThreadPoolExecutor | None = None
        self._entered: str | None = None
        self._place = parent.place(position)
        ended = next((r for r in rows or () if r.kind == EntryKind.SCOPE_END), None)
        #: Steps of each branch, where an earlier run saw the scope's end.
        self._ends: list[int] | None = None
        if ended is not None and ended.codec is not None and ended.payload is not None:
            self._ends = context._run.decode(StoredPayload(ended.codec, ended.payload), "the end of a parallel scope")

    # -- branches -------------------------------------------------------------------------------------------

    @overload
    def submit(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Branch[R]: ...

    @overload
    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Branch[R]: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Branch[Any]:
        """Start a branch: a step, or any callable that calls steps. Its positions are fixed here.

        In a plain ``with`` scope a branch is a thread; in ``async with`` it is a coroutine.

        :raises ContextClosed: outside the scope.
        :raises ConfigurationError: for a plain function in an ``async with`` scope.
        :raises StepLimitExceeded: when scopes are nested too deeply.
        """
        if self._entered is None:
            raise ContextClosed(
                "submit() was called outside its parallel scope. Write: with self.durable.parallel() as branches: "
                "branches.submit(function, ...)"
            )
        scope = self._branch_scope(len(self._branches))
        if self._entered == "async":
            if not is_async(function):
                raise ConfigurationError(
                    f"a branch of an 'async with' scope is a coroutine function; {function!r} is a plain one. Use a "
                    "plain 'with' scope, whose branches are threads."
                )
            task = asyncio.ensure_future(self._run_async(scope, function, args, kwargs))
            branch: Branch[Any] = Branch(task, lambda: self._hand_up(scope))
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._max_workers, thread_name_prefix="durable-branch")
            within = contextvars.copy_context()
            future = self._pool.submit(within.run, self._run, scope, function, args, kwargs)
            branch = Branch(future, lambda: self._hand_up(scope))
        self._branches.append(branch)
        self._scopes.append(scope)
        return branch

    @overload
    def step(
        self, what: str | StepDescriptor, op: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Branch[R]: ...

    @overload
    def step(
        self, what: str | StepDescriptor, op: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Branch[R]: ...

    def step(self, what: str | StepDescriptor, op: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Branch[Any]:
        """A branch that is one step; parameters as in :meth:`DurableContext.step`, errors as in :meth:`submit`."""
        if is_async(op):

            async def one() -> Any:
                return await self._context.step(what, op, *args, **kwargs)

            return self.submit(one)
        return self.submit(lambda: self._context.step(what, op, *args, **kwargs))

    def _branch_scope(self, index: int) -> ScopeState:
        path = f"{self._place}.{index}"
        if len(path) > _LONGEST_PATH:
            raise StepLimitExceeded(
                f"parallel scopes are nested too deeply in execution {self._context.execution_id}: the path of a "
                f"branch, {path[:40]}..., is longer than {_LONGEST_PATH} characters."
            )
        lane = f"{self._parent.lane}/{self._lane}.{index}"
        end = self._ends[index] if self._ends is not None and index < len(self._ends) else None
        return self._context._scope(path, lane, end, self._ahead and self._ahead.first(index))

    def _run(self, scope: ScopeState, function: Callable[..., R], args: Any, kwargs: Any) -> R:
        token = active.set(Active(self._context, scope))
        try:
            value = _unless_left(scope, function, args, kwargs)
            if inspect.iscoroutine(value):
                value.close()
                raise ConfigurationError(
                    f"{function!r} is a coroutine function; its branch needs 'async with self.durable.parallel()'."
                )
            self._context._check_left(scope, "the branch")
        finally:
            active.reset(token)
        return value

    async def _run_async(self, scope: ScopeState, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        token = active.set(Active(self._context, scope))
        try:
            try:
                value = await function(*args, **kwargs)
            except BaseException:
                if scope.left is None:
                    raise
            if scope.left is not None:
                raise scope.left
            self._context._check_left(scope, "the branch")
        finally:
            active.reset(token)
        return value

    # -- entering and leaving -------------------------------------------------------------------------------

    def __enter__(self) -> Parallel:
        if self._stopped:
            raise self._context._leave(self._parent, Undoing())
        self._entered = "threads"
        self._parent.open_parallels += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = None
        broken_off = self._join(_cuts_off(error)) if self._pool is not None else None
        self._left(broken_off or error)
        if broken_off is not None:
            raise broken_off

    def _join(self, cut_off: bool) -> BaseException | None:
        """Wait for the threads.

        :param cut_off: do not.
        :returns: what was raised here meanwhile, such as a soft time limit. They are waited for all the same.
        """
        assert self._pool is not None
        raised: BaseException | None = None
        while True:
            try:
                self._pool.shutdown(wait=not cut_off, cancel_futures=cut_off)
                return raised
            except BaseException as error:
                raised = raised or error
                cut_off = _cuts_off(error)

    async def __aenter__(self) -> Parallel:
        if self._stopped:
            await self._context._coroutines().hold(self._parent, Undoing())
        self._entered = "async"
        self._parent.open_parallels += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = None
        tasks = [cast("asyncio.Task[Any]", b._future) for b in self._branches]
        if error is not None and not isinstance(error, (Exception, DurableError, Leave)):
            for task in tasks:
                task.cancel()
        broken_off = await all_ended(tasks)
        self._left(broken_off or error)
        if broken_off is not None:
            raise broken_off

    def _left(self, error: BaseException | None) -> None:
        """All branches are done: raise what must come out, and journal the end."""
        self._parent.open_parallels -= 1
        failures = [self._failure(b) for b in self._branches]
        for scope, branch, failure in zip(self._scopes, self._branches, failures, strict=True):
            self._hand_up(scope, seen=branch.seen or failure is None)
        if error is not None and not isinstance(error, (Waiting, Undoing)):
            return
        left = [error] if error is not None else []
        for failure in failures:
            if isinstance(failure, (Waiting, Undoing)):
                left.append(failure)
            elif failure is not None and not isinstance(failure, Exception):
                raise failure
        if left:
            # What has gone wrong for good in another branch need not wait.
            self._raise_unseen(failures)
            raise self._context._leave(self._parent, together(left))
        if not any(failures):
            # Where a branch failed, its end is not known: the next attempt may get further.
            self._end()
        self._raise_unseen(failures)

    def _hand_up(self, branch: ScopeState, *, seen: bool | None = None) -> None:
        """What went wrong in a branch is not in its hands any more.

        :param seen: somebody got its exception; None: whoever is here does, and has handled it once he continues.
        """
        run = self._context._run
        if not run.pending:
            return
        if seen is None:
            here = self._context._here()
            run.hand_up(branch.path, here.path, here.next_position - 1, seen=True)
        else:
            run.hand_up(branch.path, self._parent.path, self._position, seen=seen)

    def _raise_unseen(self, failures: Sequence[BaseException | None]) -> None:
        for scope, branch, failure in zip(self._scopes, self._branches, failures, strict=True):
            if isinstance(failure, Exception) and not branch.seen:
                self._hand_up(scope, seen=True)
                raise failure

    @staticmethod
    def _failure(branch: Branch[Any]) -> BaseException | None:
        return None if branch._future.cancelled() else branch._future.exception()

    def _end(self) -> None:
        counts = [s.next_position for s in self._scopes]
        context = self._context
        if self._ends is None:
            payload = context._run.encode(counts, "the end of a parallel scope")
            place = self._parent.path, self._position
            context._run.append(Entry(*place, 1, EntryKind.SCOPE_END, None, "parallel", payload=payload))
        elif len(self._ends) != len(counts):
            found = divergence.branches(context.execution_id, self._place, len(self._ends), len(counts))
            raise context._run.standing.bar(found)


def _unless_left(scope: ScopeState, function: Callable[..., R], args: Any, kwargs: Any) -> R:
    """Call a branch's function. Once the branch is left because of a wait, nothing else that it does or raises counts.

    :raises Waiting: then.
    """
    try:
        value = function(*args, **kwargs)
    except BaseException:
        if scope.left is None:
            raise
    if scope.left is not None:
        raise scope.left
    return value


def _cuts_off(error: BaseException | None) -> bool:
    """Whether the branches are not waited for: a process that is being ended gives the lease back without them."""
    if error is None or isinstance(error, (Exception, DurableError, Leave)):
        return False
    return isinstance(error, KeyboardInterrupt) or is_interruption(error) or is_hard_limit(error)
