"""``celery -A proj durable ...``: look into the journal, and decide what only people can decide.

Celery's own command line loads this module in every process that starts with ``celery``, so the commands import what
they need when they run.
"""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import handle_preload_options
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]

from .cancelling import cancel
from .examining import doctor
from .listing import list_
from .promising import promise
from .pruning import prune
from .rerunning import rerun
from .schema import downgrade, upgrade
from .service import service
from .settling import resolve, resume
from .showing import show

__all__ = ["durable"]


@click.group(cls=DYMGroup)
@click.pass_context
@handle_preload_options
def durable(ctx: click.Context, **preload: Any) -> None:
    """Look at durable executions, settle them, and keep their journal.

    Exit code 0: done. 1: it could not be done; the message says why. 2: the command was written wrongly.
    """


for command in (upgrade, downgrade, list_, show, resolve, resume, cancel, rerun, promise, prune, doctor, service):
    durable.add_command(command)
