"""What runs here: the durable scope and the operation of this thread or coroutine."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from .errors import ContextClosed

if TYPE_CHECKING:
    from .context import DurableContext
    from .scope import ScopeState

__all__ = ["Active", "StepHandle", "active", "current_step", "operation"]


class StepHandle:
    """A running operation, as :func:`current_step` shows it.

    :param mint: makes the idempotency key, when somebody asks for it.
    """

    __slots__ = ("_key", "_mint", "attempt", "execution_id", "name", "step_id")

    def __init__(self, execution_id: str, step_id: str, name: str, attempt: int, mint: Callable[[], bytes]) -> None:
        #: The Celery task id, or the id that the caller chose.
        self.execution_id: Final = execution_id
        #: Where the step stands in the body, such as ``"3"`` or ``"4.0/1"``.
        self.step_id: Final = step_id
        #: What the journal calls the step.
        self.name: Final = name
        #: 1 for the first try.
        self.attempt: Final = attempt
        self._mint = mint
        self._key: bytes | None = None

    @property
    def idempotency_key(self) -> bytes:
        """32 bytes for the remote side to deduplicate on: the same for every try of this step."""
        if self._key is None:
            self._key = self._mint()
        return self._key

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
