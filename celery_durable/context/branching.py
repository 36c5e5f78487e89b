"""Branches: the part of :class:`~celery_durable.DurableContext` that runs several things at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar, overload

from celery_durable.common.arguments import check_count
from celery_durable.errors import ConfigurationError
from celery_durable.replay.read_ahead import Ahead
from celery_durable.steps.described import is_async

from .parallel import Parallel
from .scopes import ScopedContext
from .stepping import SteppingContext

__all__ = ["BranchingContext"]

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class _AsyncEach(Protocol[T_contra, R_co]):
    def __call__(self, item: T_contra, /) -> Coroutine[Any, Any, R_co]: ...


class BranchingContext(ScopedContext, SteppingContext):
    """Branches. In ``async def`` code they are coroutines: ``async with self.durable.parallel() as branches:``."""

    def parallel(self, *, max_workers: int | None = None) -> Parallel:
        """A scope whose branches run at the same time: ``with self.durable.parallel() as branches:``.

        Each branch has its own positions, fixed when it is created.

        :param max_workers: the most threads; default 8. Coroutines are not limited.
        :raises ConfigurationError: for a ``max_workers`` below 1.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        scope, position, rows, stopped = self._open_scope("parallel")
        lane, ahead = scope.take_lane(), Ahead.of(self._run, scope, position, rows)
        return Parallel(self, scope, position, rows, lane=lane, max_workers=max_workers, ahead=ahead, stopped=stopped)

    @overload
    def map(  # type: ignore[overload-overlap]
        self, function: _AsyncEach[T, R], items: Iterable[T], *, concurrency: int | None = None
    ) -> Coroutine[Any, Any, list[R]]: ...

    @overload
    def map(self, function: Callable[[T], R], items: Iterable[T], *, concurrency: int | None = None) -> list[R]: ...

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], *, concurrency: int | None = None) -> Any:
        """Call ``function(item)`` for each item, each in a branch of :meth:`parallel`.

        :param function: a step, or any function that calls steps and waits. A coroutine function gives an awaitable.
        :param items: the items; every replay must give the same ones in the same order.
        :param concurrency: how many at the same time; default 8 threads, and all coroutines.
        :returns: the results, in the order of the items.
        :raises: the first error, in the order of the items, after all branches have ended.
        """
        if concurrency is not None:
            check_count(concurrency, "map(concurrency=", 1)
        if not callable(function):
            raise ConfigurationError(f"map() takes a function and the items to call it with, not {function!r}.")
        if not isinstance(items, Iterable):
            raise ConfigurationError(f"map() takes the items as a list or another iterable, not {items!r}.")
        if is_async(function):
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
