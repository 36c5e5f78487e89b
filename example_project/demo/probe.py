"""Loaded into the demo's workers with ``--include``: lets them tell what they work on.

The shop itself does not know that it is part of a demo.
"""

from __future__ import annotations

from typing import Any

from celery.signals import task_postrun, task_prerun, worker_process_init

from . import events


@worker_process_init.connect(weak=False)
def child_is_ready(**_: Any) -> None:
    """A pool process was started."""
    events.write("child")


@task_prerun.connect(weak=False)
def order_started(task_id: str = "", **_: Any) -> None:
    """A pool process began with an order."""
    events.write("start", task_id)


@task_postrun.connect(weak=False)
def order_left(task_id: str = "", state: str | None = None, **_: Any) -> None:
    """A pool process is done with an order, for now or for good."""
    events.write("end", task_id, state or "")
