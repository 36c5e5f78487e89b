"""Durable bodies in this very process, delivered as a worker delivers them, but without a broker in between."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, states
from celery.app.trace import trace_task
from celery.exceptions import Reject
from kombu import serialization

from celery_durable import DurableContext, DurableTask, Intent, OnAmbiguous, StepDescriptor
from celery_durable.messaging.envelope import RAW_KEY
from celery_durable.runtime import Runtime
from celery_durable.store import migrations

__all__ = ["GUARDED", "Bodies", "double"]

#: A guarded step that costs what any guarded step costs.
GUARDED = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)

Body = Callable[[DurableContext], Any]

#: Content type, encoding and data of a task without arguments.
_MESSAGE = serialization.dumps(
    ((), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}), serializer="json"
)


def double(number: int) -> int:
    """The operation of a step: next to nothing, so that what is measured is the step."""
    return 2 * number


class Bodies:
    """One app on one database, with one durable task whose body is given anew for every delivery.

    :param url: of the journal's database.
    :param settings: durable ones, with their prefix.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        # Nobody connects to it. But it is said to tell whether it delivers a message for the first time.
        self.app = Celery("bench", broker="redis://", set_as_current=False)
        self.app.conf.update(durable_database_url=url, task_ignore_result=True, **settings)
        if not url.startswith("sqlite"):
            migrations.upgrade(url)
        self._body: Body = lambda context: None
        self._inside = 0.0
        bodies = self

        def body(task: DurableTask) -> None:
            context = task.durable
            begin = time.perf_counter()
            try:
                bodies._body(context)
            finally:
                bodies._inside = time.perf_counter() - begin

        self.app.task(base=DurableTask, bind=True, name="body", shared=False)(body)
        # The task itself, as a worker has it, and no proxy of it.
        self._task = self.app.tasks["body"]
        self._ids = (f"bench-{secrets.token_hex(4)}-{number}" for number in itertools.count())
        self._delivered: set[str] = set()

    @property
    def runtime(self) -> Runtime:
        """The durable side of the app."""
        return Runtime.of(self.app)

    def close(self) -> None:
        """Let go of the database."""
        self.runtime.close()
        self.app.close()

    def new_id(self) -> str:
        """An id that no execution had."""
        return next(self._ids)

    def run(self, body: Body, execution: str | None = None) -> tuple[float, float]:
        """Deliver a message, new or known, as a worker on Redis does.

        :returns: seconds for all of it (open, body, end), and seconds inside the body.
        """
        self._body = body
        execution = execution or self.new_id()
        request = self._request(execution)
        begin = time.perf_counter()
        outcome = trace_task(self._task, execution, (), {}, request, app=self.app)
        whole = time.perf_counter() - begin
        if outcome.info is not None and outcome.info.state != states.REJECTED:
            raise RuntimeError(f"the body did not end well: {outcome.info.retval!r}")
        return whole, self._inside

    def _request(self, execution: str) -> dict[str, Any]:
        """What the worker's main process hands to a pool process."""
        again = execution in self._delivered
        self._delivered.add(execution)
        return {
            "lang": "py",
            "task": self._task.name,
            "id": execution,
            "root_id": execution,
            "parent_id": None,
            "group": None,
            "retries": 0,
            "timelimit": [None, None],
            "origin": "bench",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "is_eager": False,
            "properties": {"correlation_id": execution, "delivery_mode": 2, "priority": 0},
            "delivery_info": {"exchange": "", "routing_key": "bench", "priority": 0, "redelivered": again},
            RAW_KEY: _MESSAGE,
        }

    def interrupt(self, body: Body, execution: str) -> tuple[float, float]:
        """As :meth:`run`, but the message goes back into its queue at the end of the body: it can be run again."""

        def interrupted(context: DurableContext) -> None:
            body(context)
            raise Reject(requeue=True)

        return self.run(interrupted, execution)


@contextmanager
def on(url: str, **settings: Any) -> Iterator[Bodies]:
    """Bodies on a database, for as long as the block lasts."""
    bodies = Bodies(url, **settings)
    try:
        yield bodies
    finally:
        bodies.close()
