"""Which of an application's tasks are durable."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["is_durable"]


def is_durable(app: Celery, name: str) -> bool:
    """Whether this process knows the task and it is a durable one.

    Under ``Celery(task_cls=DurableTask)`` Celery's own tasks are of that class too, and are not durable.
    """
    return getattr(app.tasks.get(name), "_celery_durable", False) and not name.startswith("celery.")
