"""Loaded into the demo's workers with ``--include``: lets them tell what they work on.

The shop itself does not know that it is part of a demo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.signals import task_postrun, task_prerun, worker_process_init

from celery_durable import DurableTask

from ..app import app
from . import events


@worker_process_init.connect(weak=False)
def child_is_ready(**_: Any) -> None:
    """A pool process was started."""
    for task in app.tasks.values():
        if isinstance(task, DurableTask):
            task.run = _told(task, task.run)
    events.write("child")


def _told(task: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """A body that says that it is run. A delivery that is dropped, as a duplicate or too late, does not come here."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        events.write("run", task.request.id or "")
        return body(*args, **kwargs)

    return run


@task_prerun.connect(weak=False)
def order_started(task_id: str = "", task: Any = None, **_: Any) -> None:
    """A pool process began with an order, or with a parcel."""
    events.write("start", task_id, task.request.root_id or task_id)


@task_postrun.connect(weak=False)
def order_left(task_id: str = "", **_: Any) -> None:
    """A pool process is done with it, for now or for good."""
    events.write("end", task_id)
