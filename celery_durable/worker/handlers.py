"""Handles the requests that the processes of a worker send to its service."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from billiard import exceptions as billiard_exceptions

from celery_durable.children.reports import report
from celery_durable.errors import UnknownExecution, WrongState
from celery_durable.execution.cancelling import after_cancel
from celery_durable.execution.outcome import pack_error
from celery_durable.runtime import Runtime
from celery_durable.store.records import PromiseState
from celery_durable.store.rows import reason_payload

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["handle"]


def handle(app: Celery, message: dict[str, Any]) -> None:
    """Do what ``message`` asks.

    :raises JournalUnavailable: when the database did not answer; ask again.
    """
    op = message["op"]
    if op == "cancel":
        try:
            row = Runtime.of(app).operations.cancel(message["id"], message["reason"])
        except (UnknownExecution, WrongState):
            return  # it has ended already, or never had a row
        after_cancel(app, row, message["reason"])
    elif op == "disown":
        report(app, message["id"], PromiseState.CANCELLED, reason_payload(message["reason"]))
    elif op == "fail":
        name = message["error"]
        cls: Any = getattr(billiard_exceptions, name, None) or getattr(builtins, name, None)
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            cls = RuntimeError
        outcome = pack_error(Runtime.of(app), cls(*message["args"]))
        Runtime.of(app).operations.fail(message["id"], outcome, message["reason"])
    elif op == "count":
        Runtime.of(app).ownership.count_death(message["id"])
    elif op == "forsake":
        Runtime.of(app).recovery.forsake(message["owner"])
    else:
        raise ValueError(f"unknown request {op!r}")
