"""What the service does when a process of its worker asks it to."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from billiard import exceptions as billiard_exceptions

from ..cancelling import after_cancel
from ..delivery import report
from ..errors import UnknownExecution, WrongState
from ..outcome import pack_error
from ..runtime import Runtime
from ..store import Operations
from ..store.records import PromiseState
from ..store.rows import reason_payload

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["handle", "operations"]


def operations(app: Celery) -> Operations:
    """Operations on the app's executions."""
    runtime = Runtime.of(app)
    return Operations(runtime.database, namespace=runtime.settings.namespace)


def handle(app: Celery, message: dict[str, Any]) -> None:
    """Do what ``message`` asks.

    :raises JournalUnavailable: when the database did not answer; ask again.
    """
    op = message["op"]
    if op == "cancel":
        try:
            row = operations(app).cancel(message["id"], message["reason"])
        except (UnknownExecution, WrongState):
            return  # it ended on its own, or never had a row
        after_cancel(app, row, message["reason"])
    elif op == "disown":
        report(app, message["id"], PromiseState.CANCELLED, reason_payload(message["reason"]))
    elif op == "fail":
        name = message["error"]
        cls: Any = getattr(billiard_exceptions, name, None) or getattr(builtins, name, RuntimeError)
        outcome = pack_error(Runtime.of(app), cls(*message["args"]))
        operations(app).fail(message["id"], outcome, message["reason"])
    elif op == "forsake":
        Runtime.of(app).recovery.forsake(message["owner"])
    else:
        raise ValueError(f"unknown request {op!r}")
