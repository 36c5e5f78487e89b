"""What the parts of a durable context share: the run, the caller's position in the body, and whether it may continue.

Each part is a base class of :class:`~celery_durable.DurableContext`. What one part does and another one needs is
declared here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from celery_durable.errors import ContextClosed, NestedStep, ReplayDivergence
from celery_durable.replay.leaving import Undoing, Waiting
from celery_durable.replay.run import Run
from celery_durable.replay.scope import ScopeState
from celery_durable.steps.current import active, operation
from celery_durable.steps.descriptor import StepDescriptor
from celery_durable.store.records import Journaled
from celery_durable.waits.held_coroutines import HeldCoroutines
from celery_durable.waits.wait import Wait

__all__ = ["BodyContext"]


class BodyContext:
    """A running body, as all parts of its context see it."""

    _run: Run
    #: The scope of the body itself.
    _body: ScopeState
    _closed: bool
    #: The event loop in which a plain body was called, whose coroutines are not the body's.
    _outer_loop: asyncio.AbstractEventLoop | None

    # -- facts ----------------------------------------------------------------------------------------------

    @property
    def execution_id(self) -> str:
        """The Celery task id, or the caller's ``durable_id``."""
        return self._run.execution_id

    @property
    def attempt(self) -> int:
        """How often this execution was taken over from an owner that died; 0 for none."""
        return self._run.opened.attempts

    @property
    def replaying(self) -> bool:
        """True while the journal holds a step that the body has not asked for yet (in this branch).

        For logs and progress bars. Steps must not depend on it.
        """
        scope = self._here()
        return scope.cursor.has(scope.next_position)

    # -- where it stands, and whether it continues ----------------------------------------------------------

    def _here(self) -> ScopeState:
        here = active.get()
        # A thread that the body started itself knows no scope: it works in the body's.
        return here.scope if here is not None and here.context is self else self._body

    def _check(self, name: str = "") -> None:
        run = self._run
        if self._closed or run.standing.barred is not None or run.buffer.cancelled or operation.get() is not None:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        """Say what is wrong, if it is."""
        if self._closed:
            raise ContextClosed(
                f"the durable context of execution {self.execution_id} was used after its body had ended. Do all steps "
                "before the task returns; wait for the threads and coroutines that it starts."
            )
        self._run.check()
        outer = operation.get()
        if outer is not None:
            raise NestedStep(
                f"{f'step {name!r}' if name else 'the durable context'} was used inside the operation of step "
                f"{outer.name!r}. A step cannot contain steps: call it from the task's body, or call the plain "
                "function (.operation of a @step)."
            )

    def _diverge(self, error: ReplayDivergence) -> None:
        raise self._run.standing.bar(error)

    def _next_place(self, name: str) -> tuple[ScopeState, int]:
        scope = self._here()
        self._check(name)
        if scope.left is not None:
            raise scope.left
        self._run.count_step(name)
        position = scope.take_position()
        self._run.settle_errors(scope.path, position)
        return scope, position

    def _in_coroutine(self) -> bool:
        """Whether the caller is a coroutine of the body, which awaits. A plain body may have been called by one."""
        try:
            return asyncio.get_running_loop() is not self._outer_loop
        except RuntimeError:
            return False

    # -- what the parts do for each other -------------------------------------------------------------------

    def _call(
        self,
        scope: ScopeState,
        descriptor: StepDescriptor,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_async: bool,
        recorded: bool = False,
    ) -> Any:
        """Do a step at the next position of a scope."""
        raise NotImplementedError

    def _wait(self, wait: Wait) -> Any:
        """Wait at the next position: here, or in the coroutine that this returns in ``async def`` code."""
        raise NotImplementedError

    def _coroutines(self) -> HeldCoroutines:
        """Where the coroutines of this event loop wait."""
        raise NotImplementedError

    def _check_awaited(self) -> None:
        """
        :raises ConfigurationError: the body asked for a wait, or a step, and continued without it.
        """
        raise NotImplementedError

    def _scope(self, path: str, lane: str, end: int | None = None, first: Any = None) -> ScopeState:
        """A scope, with the cursor over what the journal has of it."""
        raise NotImplementedError

    def _check_left(self, scope: ScopeState, what: str) -> None:
        """
        :raises ReplayDivergence: the journal holds a step of this scope that was never asked for.
        """
        raise NotImplementedError

    def _at_the_end(self, scope: ScopeState, rows: list[Journaled] | None) -> bool:
        """Whether a scope of a body that is stopped has come to where its journal ends."""
        raise NotImplementedError

    def _leave(self, scope: ScopeState, left: Waiting | Undoing) -> BaseException:
        """This scope is left. A branch is left alone; the body permanently."""
        raise NotImplementedError

    def _stop(self, scope: ScopeState) -> BaseException:
        """By what a plain call of a body that is stopped is left."""
        raise NotImplementedError

    def _awaits_more(self) -> bool:
        """Whether the journal knows of steps that the body has not come to yet."""
        raise NotImplementedError
