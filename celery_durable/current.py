"""What runs here: the durable scope and the operation of this thread or coroutine."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ContextClosed

if TYPE_CHECKING:
    from .context import DurableContext
    from .scope import ScopeState

__all__ = ["Active", "StepHandle", "active", "current_step", "operation"]


@dataclass(frozen=True)
class StepHandle:
    """A running operation, as :func:`current_step` shows it."""

    #: The Celery task id, or the id that the caller chose.
    execution_id: str
    #: Where the step stands in the body, such as ``"3"`` or ``"4.0/1"``.
    step_id: str
    #: What the journal calls the step.
    name: str
    #: 1 for the first try.
    attempt: int
    #: 32 bytes for the remote side to deduplicate on: the same for every try of this step.
    idempotency_key: bytes


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

    :raises ContextClosed: outside an operation.
    """
    handle = operation.get()
    if handle is None:
        raise ContextClosed(
            "current_step() was called where no step's operation is running. Call it inside the function that is the "
            "step, not in the task's body; a @step function called outside a durable task is a plain function."
        )
    return handle
