"""Coroutines that wait: they are left together, when everything else of the body has come to rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NoReturn

from .control import Waiting

if TYPE_CHECKING:
    from .scope import ScopeState

__all__ = ["Parking"]

#: Turns of the event loop in which nothing may begin before the body is left: a task that has just been given its
#: value is about to ask for more.
_TURNS: Final = 20


class Parking:
    """The waits of one event loop.

    A body that gathers a wait and a step must not be left while the step's operation runs: that would cut it off in the
    middle. So a wait holds its coroutine until no step of the loop is under way.

    :param leave: says of a scope that it is left because of its waits, and gives the exception that it is left by.
    """

    def __init__(self, leave: Callable[[ScopeState, Waiting], BaseException]) -> None:
        self._leave = leave
        self._parked: dict[asyncio.Future[None], tuple[ScopeState, Waiting]] = {}
        #: Steps under way, and waits that are being looked at.
        self._flying = 0
        self._watching = False

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        """Something is under way that must not be cut off."""
        self._flying += 1
        try:
            yield
        finally:
            self._flying -= 1
            self._watch()

    async def park(self, scope: ScopeState, waiting: Waiting) -> NoReturn:
        """Hold this coroutine until its scope is left.

        :raises Waiting: then.
        """
        future = asyncio.get_running_loop().create_future()
        self._parked[future] = (scope, waiting)
        self._watch()
        try:
            await future
        finally:
            self._parked.pop(future, None)
        raise AssertionError("a wait that is parked ends by an exception")

    def _watch(self) -> None:
        if self._parked and not self._flying and not self._watching:
            self._watching = True
            self._turn(_TURNS)

    def _turn(self, left: int) -> None:
        if self._flying or not self._parked:
            self._watching = False  # whatever lands, or parks, begins anew
        elif left:
            asyncio.get_running_loop().call_soon(self._turn, left - 1)
        else:
            self._watching = False
            self._release()

    def _release(self) -> None:
        scopes: dict[ScopeState, list[asyncio.Future[None]]] = {}
        for future, (scope, _) in self._parked.items():
            scopes.setdefault(scope, []).append(future)
        for scope, futures in scopes.items():
            error = self._leave(scope, Waiting.together(self._parked[future][1] for future in futures))
            for future in futures:
                if not future.done():
                    future.set_exception(error)
