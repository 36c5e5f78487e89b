"""Messages of a lab's task, delivered in this process as a worker would: a body that waits is left, and time passes
because a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery.exceptions import Ignore

from celery_durable.messaging import capture
from celery_durable.store.records import FINAL_STATES
from celery_durable.store.recovery import Claims
from celery_durable.store.tables import executions, journal, promises

from .lab import Lab

__all__ = ["FIRST", "Delivery", "Left", "elapse", "hand_over"]

#: More of what a message says that RabbitMQ or Redis delivers for the first time.
FIRST: dict[str, Any] = {
    "delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": False},
    "durable_raw": (
        "application/json",
        "utf-8",
        '[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    ),
}


class Left(Exception):
    """The body was left; the text is the state in which the execution is now."""


def hand_over(task: Any, id: str, *args: Any, **request: Any) -> Any:  # noqa: A002
    """Call a task as a worker does with a message.

    :param request: more of what the message says.
    """
    usual = {
        "id": id,
        "task": task.name,
        "args": args,
        "kwargs": {},
        "retries": 0,
        "is_eager": False,
        "called_directly": False,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "properties": {},
        "hostname": "test",
    }
    task.push_request(**(usual | request))
    try:
        return task(*args)
    finally:
        task.pop_request()
        # Celery would store the value now, and what it publishes because of it would be held back no longer.
        held = capture.here()
        if held is not None:
            capture.end(held)


class Delivery:
    """Delivers messages of ``lab.job``."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __call__(self, body: Callable[..., Any], *args: Any, id: str = "one") -> Any:  # noqa: A002
        """Deliver a message; what the body returned.

        :raises Left: when it was left, or its message was dropped.
        """
        self.lab._body = body
        try:
            return hand_over(self.lab.job, id, *args)
        except Ignore:
            raise Left(str(self.lab.state(id))) from None

    def suspends(self, body: Callable[..., Any], *args: Any, id: str = "one") -> None:  # noqa: A002
        """Deliver a message whose body comes to a wait."""
        known = {row.id: row.epoch for row in self.lab.operations.find(limit=100)}
        with pytest.raises(Left, match="suspended"):
            self(body, *args, id=id)
        assert self.lab.execution(id).epoch > known.get(id, 0), "the message was dropped"

    def claim(self) -> Claims:
        """What a recovery service would send now."""
        return self.lab.runtime.recovery.claim(100)

    def due(self) -> list[str]:
        """Ids of the executions that a recovery service would let go on now."""
        return sorted(due.id for due in self.claim().due)

    def resumes(self, body: Callable[..., Any], *args: Any, id: str = "one") -> Any:  # noqa: A002
        """Recovery sends the message of this execution; what its body returned."""
        assert self.due() == [id]
        return self(body, *args, id=id)

    def elapse(self, seconds: float) -> None:
        """As if so much time had passed since everything that has happened."""
        elapse(self.lab.runtime.database.engine, seconds)


def elapse(engine: sa.Engine, seconds: float) -> None:
    """As if so much time had passed since everything that has happened in a database."""
    ms = int(seconds * 1000)

    def back(*columns: sa.Column[Any]) -> dict[sa.Column[Any], Any]:
        return {column: column - ms for column in columns}

    open_ones = executions.c.state.not_in([s.value for s in FINAL_STATES])
    times = (promises.c.deadline, promises.c.expires_at, promises.c.timer_at, promises.c.settled_at)
    with engine.begin() as connection:
        connection.execute(sa.update(executions).where(open_ones).values(back(executions.c.wake_at)))
        connection.execute(sa.update(journal).values(back(journal.c.at)))
        connection.execute(sa.update(promises).values(back(promises.c.created_at, *times)))
