"""The demo's own access to the shop's Celery application: submits orders, empties and cleans up the broker.

The application reads its settings when it is imported, so it is imported here only after they are in place.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..shop import Order


class Shopfront:
    """Takes orders."""

    def __init__(self, env: dict[str, str]) -> None:
        os.environ.update(env)
        self._tasks: Any = importlib.import_module("example_project.tasks")
        self._app: Any = self._tasks.app

    def submit(self, order: Order, execution_id: str) -> None:
        """Send the task that fulfils an order."""
        self._tasks.fulfil.apply_async((order.id,), task_id=execution_id)

    def flush_broker(self) -> None:
        """Empty the broker's Redis database: every message in it is gone."""
        with self._app.connection_for_write() as connection:
            connection.default_channel.client.flushdb()

    def remove_queue(self) -> None:
        """Take the demo's queue off the broker, with what a crash may have left in it."""
        with self._app.connection_for_write() as connection:
            connection.default_channel.queue_delete(self._app.conf.task_default_queue)
