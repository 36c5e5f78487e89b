"""A logger that is silent while a body replays: a line before the first unfinished step appears once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_durable.steps.current import Body, active, operation

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["DurableLogger", "get_logger"]


class DurableLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A logger adapter that is disabled while the body (or this branch of it) replays.

    Records carry the extras ``execution_id`` and, inside an operation, ``step`` and ``step_attempt``.
    """

    def __init__(self, name: str, context: Body | None = None) -> None:
        super().__init__(logging.getLogger(name), {})
        self._context = context

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 (the name is logging's)
        """As the logger, but False while replaying."""
        if not self.logger.isEnabledFor(level):
            return False
        context = self._running()
        # An operation that runs is never a replay.
        return context is None or operation.get() is not None or not context.replaying

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what distinguishes this execution's records from others."""
        context = self._running()
        extra = dict(kwargs.get("extra") or {})
        if context is not None:
            extra.setdefault("execution_id", context.execution_id)
        handle = operation.get()
        if handle is not None:
            extra.setdefault("step", handle.name)
            extra.setdefault("step_attempt", handle.attempt)
        kwargs["extra"] = extra
        return msg, kwargs

    def _running(self) -> Body | None:
        if self._context is not None:
            return self._context
        here = active.get()
        return None if here is None else here.context


def get_logger(name: str) -> DurableLogger:
    """A logger for a module that is silent during replays. Outside a durable body it is an ordinary one.

    :param name: name of the :mod:`logging` logger that gets the records.
    """
    return DurableLogger(name)
