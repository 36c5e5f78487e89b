"""Advice for an operator about an execution's state."""

from __future__ import annotations

from typing import Final

from .records import Execution, State

__all__ = ["calls_again", "goes_on"]

_PRESENT: Final = {
    State.PENDING: "It continues by itself as soon as a worker is free.",
    State.RUNNING: "It continues by itself.",
    State.SUSPENDED: "It continues by itself when it is due.",
    State.AMBIGUOUS: "It waits for: celery durable resolve",
    State.QUARANTINED: "It waits for: celery durable resume",
    State.COMPLETED: "It has ended.",
    State.FAILED: "It has ended; celery durable resume continues it where it stopped.",
    State.CANCELLED: "It has ended; to do its work again, call the task again.",
}
_UNDER_WAY: Final = (State.PENDING, State.RUNNING, State.SUSPENDED)


def goes_on(row: Execution, *, eager: bool) -> str:
    """How an execution continues from here.

    :param eager: it has no message that could be sent again.
    """
    return calls_again(row) if eager and row.state in _UNDER_WAY else _PRESENT[row.state]


def calls_again(row: Execution) -> str:
    """The same for an execution that runs eagerly, whose process may have died."""
    dead = "if that has died, " if row.state is State.RUNNING else ""
    where = "runs eagerly, in the process that called it" if row.state is State.RUNNING else "ran eagerly"
    return (
        f"It {where}: {dead}nothing brings it back by itself. It continues where it stopped when task {row.task} is "
        f"called again like this: apply(..., task_id={row.id!r})."
    )
