"""Coroutines that wait: they are left together, when everything else in the body is idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

from celery_durable.replay.leaving import Undoing, Waiting, together
from celery_durable.replay.scope import ScopeState

__all__ = ["HeldCoroutines"]

logger = logging.getLogger(__name__)

#: Turns of the event loop in which nothing may begin before the body is left: a task that has just been given its
#: value is about to ask for more.
_TURNS: Final = 20
#: How long coroutines that are on their way to a step of the journal may take between two of them, in seconds, and how
#: often one looks. A body that will not come there has changed, which is noticed after that.
_PATIENCE: Final = 30.0
_GLANCE: Final = 0.02


class _Held(NamedTuple):
    scope: ScopeState
    left: Waiting | Undoing
    task: asyncio.Task[Any] | None


class HeldCoroutines:
    """The waits of one event loop.

    A body that gathers a wait and a step must not be left while the step's operation runs: that would cut it off in the
    middle. So a wait holds its coroutine until no step of the loop is under way. Nor does a body end before that.

    :param leave: says of a scope that it is left because of its waits, and gives the exception that it is left by.
    :param awaits_more: whether the journal knows of steps that the body has not come to yet. May block.
    """

    def __init__(
        self, leave: Callable[[ScopeState, Waiting | Undoing], BaseException], awaits_more: Callable[[], bool]
    ) -> None:
        self._leave = leave
        self._awaits_more = awaits_more
        self._held: dict[asyncio.Future[None], _Held] = {}
        #: Steps under way, and waits that are being looked at.
        self._flying = 0
        self._landed: asyncio.Future[None] | None = None
        self._watching = False
        #: The body has ended: what else runs in its loop begins nothing new.
        self.closing = False
        #: ``time.monotonic()`` of the latest sign that coroutines continue.
        self._moved = 0.0

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        """Something is under way that must not be cut off."""
        self._flying += 1
        try:
            yield
        finally:
            self._flying -= 1
            self._moved = time.monotonic()
            if not self._flying and self._landed is not None and not self._landed.done():
                self._landed.set_result(None)
            self._watch()

    async def hold(self, scope: ScopeState, left: Waiting | Undoing) -> NoReturn:
        """Hold this coroutine until its scope is left; where the body has ended, until its loop does.

        :raises Waiting, Undoing: then.
        """
        future = asyncio.get_running_loop().create_future()
        self._held[future] = _Held(scope, left, asyncio.current_task())
        self._moved = time.monotonic()
        self._watch()
        try:
            await future
        finally:
            self._held.pop(future, None)
        raise AssertionError("a wait that is held ends by an exception")

    async def rest(self) -> None:
        """The body has ended: return when nothing that it began is under way any more, and all is reached that its
        journal knows.
        """
        self.closing = True
        self._moved = time.monotonic()
        while True:
            if self._flying:
                self._landed = asyncio.get_running_loop().create_future()
                await self._landed
            elif self._is_coming():
                await asyncio.sleep(_GLANCE)
            else:
                return

    def _is_coming(self) -> bool:
        """Whether coroutines that are not held are on their way to what the journal knows."""
        held = {one.task for one in self._held.values()}
        others = [t for t in asyncio.all_tasks() if t not in held and t is not asyncio.current_task()]
        if not others or time.monotonic() - self._moved > _PATIENCE:
            return False
        try:
            return self._awaits_more()
        # Whoever reads the journal next says what is wrong with it.
        except BaseException as error:
            logger.debug("the journal cannot be asked for news: %r", error)
            return False

    def _watch(self) -> None:
        if self._held and not self._flying and not self._watching and not self.closing:
            self._watching = True
            self._turn(_TURNS)

    def _turn(self, left: int) -> None:
        if self._flying or not self._held or self.closing:
            self._watching = False  # whatever lands, or is held, starts again
        elif left:
            asyncio.get_running_loop().call_soon(self._turn, left - 1)
        elif any(isinstance(one.left, Undoing) for one in self._held.values()) and self._is_coming():
            # Others have not told yet what there is to undo.
            asyncio.get_running_loop().call_later(_GLANCE, self._turn, _TURNS)
        else:
            self._watching = False
            self._release()

    def _release(self) -> None:
        scopes: dict[ScopeState, list[asyncio.Future[None]]] = {}
        for future, one in self._held.items():
            scopes.setdefault(one.scope, []).append(future)
        for scope, futures in scopes.items():
            error = self._leave(scope, together(self._held[future].left for future in futures))
            for future in futures:
                if not future.done():
                    future.set_exception(error)
