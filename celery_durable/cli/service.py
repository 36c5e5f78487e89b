"""``durable service``: recovery without a worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import click
from celery.bin.base import LOG_LEVEL

from celery_durable.errors import JournalUnavailable
from celery_durable.worker.service import Service

from .base import DurableCommand, open_desk
from .plain_text import PlainFormatter

__all__ = ["service"]

logger = logging.getLogger(__name__)


@click.command(cls=DurableCommand)
@click.option("-l", "--loglevel", type=LOG_LEVEL, default="INFO", show_default=True)
@click.pass_context
def service(ctx: click.Context, loglevel: Any) -> None:
    """Run the recovery service in the foreground.

    Every worker has one. Run it alone where executions must be sent again while no worker lives that could do it, such
    as workers that are scaled to zero. Any number may run. SIGTERM and SIGINT end it.
    """
    desk = open_desk(ctx, must_exist=False)
    app = desk.app
    trouble = None
    try:
        desk.runtime.database.read(lambda connection: None)
    except JournalUnavailable as error:
        # It may come back. A missing schema or a wrong setting will not do so by itself, and ends the command.
        trouble = error
    app.set_default()
    app.set_current()
    app.log.setup(loglevel=loglevel, redirect_stdouts=False, colorize=False)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter(handler.formatter or logging.Formatter()))
    if trouble is not None:
        logger.warning("the journal cannot be reached yet: %s", trouble)
    _serve(Service(app))


def _serve(recovery: Service) -> None:
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        # Whoever asks twice is in a hurry.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        recovery.stop()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    settings = recovery.settings
    logger.info("recovery service of namespace %r is ready (pid %d)", settings.namespace, os.getpid())

    def pause(seconds: float) -> None:
        stopping.wait(seconds)

    recovery.run(pause)
    logger.info("recovery service stops")
