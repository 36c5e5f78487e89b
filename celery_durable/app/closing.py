"""Closes an application's journal in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.errors import ConfigurationError
from celery_durable.runtime import Runtime

from .installing import app_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["close"]


def close(app: Celery | None = None) -> None:
    """Close what this process has open for an application's journal: its connections, and the threads that commit and
    renew leases. Pending marks of dispatched results are written first. Workers do this by themselves when they stop.

    The next use opens everything again, with the settings of that moment. A journal in memory is lost.

    :param app: the Celery application; default: the current one, or in a thread without a current one, the only one.
    :raises ConfigurationError: while executions run in this process, and when it is not clear which application is
        meant.
    """
    app = app_of(app)
    runtime = Runtime.known(app)
    if runtime is None:
        return
    if runtime.keeper.busy:
        raise ConfigurationError(
            "close() would take the journal away from executions that run in this process; stop the worker first."
        )
    Runtime.forget(app)
    runtime.end()
