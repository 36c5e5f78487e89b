"""What runs here: the durable scope and the operation of this thread or coroutine."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from .errors import ContextClosed

if TYPE_CHECKING:
    from .actions import StepCall
    from .context import DurableContext
    from .scope import ScopeState

__all__ = ["Active", "StepHandle", "active", "current_step", "operation"]


class StepHandle:
    """A running operation, as :func:`current_step` shows it."""

    __slots__ = ("_call", "attempt")

    def __init__(self, call: StepCall, attempt: int) -> None:
        self._call = call
        #: 1 for the first try.
        self.attempt: Final = attempt

    @property
    def execution_id(self) -> str:
        """The Celery task id, or the id that the caller chose."""
        return self._call.execution_id

    @property
    def step_id(self) -> str:
        """Where the step stands in the body, such as ``"3"`` or ``"4.0/1"``."""
        return self._call.place

    @property
    def name(self) -> str:
        """What the journal calls the step."""
        return self._call.descriptor.name

    @property
    def idempotency_key(self) -> bytes:
        """32 bytes for the remote side to deduplicate on: the same for every try of this step."""
        return self._call.key

    def __repr__(self) -> str:
        return f"<step {self.name!r} (position {self.step_id}) of {self.execution_id}, try {self.attempt}>"


class Active:
    """A body, or a branch of it, that runs in this thread or coroutine."""

    __slots__ = ("context", "scope")

    def __init__(self, context: DurableContext, scope: ScopeState) -> None:
        self.context = context
        self.scope = scope


#: The durable body that runs here; None outside one.
active: ContextVar[Active | None] = ContextVar("celery_durable_active", default=None)
#: The operation that runs here; None in the body itself.
operation: ContextVar[StepHandle | None] = ContextVar("celery_durable_operation", default=None)


def current_step() -> StepHandle:
    """The step whose operation is running: its id, attempt and idempotency key.

    In a task that was called directly, its key is of that call alone.

    :raises ContextClosed: outside an operation.
    """
    handle = operation.get()
    if handle is None:
        raise ContextClosed(
            "current_step() was called where no step's operation is running. Call it inside the function that is the "
            "step, not in the task's body; a @step function called outside a durable task is a plain function."
        )
    return handle
