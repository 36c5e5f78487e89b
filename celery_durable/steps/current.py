"""The current durable scope and operation of this thread or coroutine."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from celery_durable.errors import ContextClosed
from celery_durable.replay.scope import ScopeState

from .call import StepHandle
from .descriptor import StepDescriptor

__all__ = ["Active", "Body", "active", "current_step", "operation"]


class Body(Protocol):
    """Whoever serves the body that runs here."""

    @property
    def execution_id(self) -> str: ...

    @property
    def replaying(self) -> bool: ...

    def _call(
        self,
        scope: ScopeState,
        descriptor: StepDescriptor,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_async: bool,
        /,
    ) -> Any: ...


class Active:
    """A body, or a branch of it, that runs in this thread or coroutine."""

    __slots__ = ("context", "scope")

    def __init__(self, context: Body, scope: ScopeState) -> None:
        self.context = context
        self.scope = scope


#: The durable body that runs here; None outside one.
active: ContextVar[Active | None] = ContextVar("celery_durable_active", default=None)
#: The operation that runs here; None in the body itself.
operation: ContextVar[StepHandle | None] = ContextVar("celery_durable_operation", default=None)


def current_step() -> StepHandle:
    """The step whose operation is running: its id, attempt and idempotency key.

    In a task that was called directly, its key belongs to that call alone.

    :raises ContextClosed: outside an operation.
    """
    handle = operation.get()
    if handle is None:
        raise ContextClosed(
            "current_step() was called where no step's operation is running. Call it inside the function that is the "
            "step, not in the task's body; a @step function called outside a durable task is a plain function."
        )
    return handle
