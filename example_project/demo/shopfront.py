"""The demo's own access to the shop's Celery application: submits orders, empties and cleans up the broker.

The application reads its settings when it is imported, so it is imported here only after they are in place.
"""

from __future__ import annotations

import importlib
import os
from types import TracebackType
from typing import Any

from kombu.exceptions import OperationalError

from ..shop import Order
from .stage import StageError


class Shopfront:
    """Takes orders. A context manager: checks the broker first, and takes the demo's queue off it at the end."""

    def __init__(self, env: dict[str, str]) -> None:
        os.environ.update(env)
        self._tasks: Any = importlib.import_module("example_project.tasks")
        self._app: Any = self._tasks.app

    def __enter__(self) -> Shopfront:
        with self._app.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=1)
            except OperationalError as error:
                raise StageError(f"the broker {connection.as_uri()} does not answer: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._app.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=1)
                queue = self._app.amqp.queues[self._app.conf.task_default_queue].bind(connection.default_channel)
                # Declared first: some transports delete only what this connection knows.
                queue.declare()
                queue.delete()
            except OperationalError:
                pass  # what the demo found out does not depend on it

    def submit(self, order: Order, execution_id: str) -> None:
        """Send the task that fulfils an order."""
        self._tasks.fulfil.apply_async((order.id,), task_id=execution_id)

    def flush_broker(self) -> None:
        """Empty the broker's Redis database: every message in it is gone."""
        with self._app.connection_for_write() as connection:
            connection.default_channel.client.flushdb()
