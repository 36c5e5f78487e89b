"""Connects an app's workers and publishers to the journal.

This happens when the first durable task is bound, or with the first message of an app that has ``durable_*`` settings:
Celery binds tasks when they are used, and a message of another task may have to join a transaction before that.
"""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.amqp import AMQP
from celery.exceptions import Ignore, Reject

from celery_durable.children.reports import register
from celery_durable.common.faults import reached
from celery_durable.errors import JournalUnavailable
from celery_durable.execution.outcome_delivery import returned
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.publishing import wrap_sender
from celery_durable.messaging.tasks import is_durable
from celery_durable.runtime import Runtime
from celery_durable.settings import is_configured
from celery_durable.worker.bootstep import DurableStep
from celery_durable.worker.control import control_of

from .choosing import choose, real

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["app_of", "install"]

logger = logging.getLogger(__name__)

_installed: weakref.WeakSet[Celery] = weakref.WeakSet()


def install(app: Celery) -> None:
    """Make an app durable; once."""
    app = real(app)
    if app in _installed:
        return
    _installed.add(app)
    app.steps["worker"].add(DurableStep)
    _wrap_amqp(app)
    register(app)


def app_of(app: Celery | None = None) -> Celery:
    """The application that a caller means, who may name none.

    :raises ConfigurationError: where it is not clear which.
    """
    return choose(_installed) if app is None else real(app)  # type: ignore[no-any-return]


def _wrap_amqp(app: Celery) -> None:
    """Put the outbox in front of the task sender; it is built on first use and looks at the configuration then."""
    amqp: Any = app.amqp
    built = amqp.__dict__.get("send_task_message")
    if built is not None:
        amqp.__dict__["send_task_message"] = wrap_sender(app, built)
        return
    create = amqp._create_task_sender
    amqp._create_task_sender = lambda: wrap_sender(app, create())


def _before_first_message(amqp: Any) -> Any:
    if real(amqp.app) not in _installed and is_configured(amqp.app):
        install(amqp.app)
        return amqp._create_task_sender()
    return _create_task_sender(amqp)


_create_task_sender: Any = AMQP._create_task_sender  # type: ignore[attr-defined]
AMQP._create_task_sender = _before_first_message  # type: ignore[attr-defined]


@signals.task_postrun.connect(weak=False, dispatch_uid="celery_durable.postrun")
def _on_postrun(sender: Any = None, task_id: str | None = None, retval: Any = None, **_: Any) -> None:
    """Celery has finished with a message: if the outcome was passed on, later duplicates are dropped."""
    app = getattr(sender, "app", None)
    runtime = Runtime.known(app) if app is not None else None
    if runtime is None or task_id is None:
        return
    if isinstance(retval, (Ignore, Reject)):
        # It and the frame that holds Celery's copy of all that hold each other. There may be thousands of these before
        # the collector looks for such old ones.
        retval.__traceback__ = None
    outcome = returned(runtime, task_id)
    if outcome is None:
        return
    reached("task.returned", task_id)
    if not outcome.told:
        return
    runtime.keeper.dispatched(outcome.pk)
    if outcome.has_callbacks:
        # Handed on once more it would send them again; anything else may be marked with the next batch.
        try:
            runtime.keeper.mark()
        except JournalUnavailable as error:
            logger.warning("%s was not marked as dispatched yet: %s", task_id, error)


@signals.task_revoked.connect(weak=False, dispatch_uid="celery_durable.revoked")
def _on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
    """A revoked execution is cancelled, or recovery would bring it back. A waiting parent is notified."""
    app = getattr(sender, "app", None)
    if app is None or app not in _installed or request is None:
        return
    reason = "its message expired before it started" if expired else "it was revoked"
    if is_durable(app, sender.name):
        control_of(app).cancel(str(request.id), reason)
    else:
        promise = getattr(request, envelopes.CHILD_HEADER, None)
        if promise:
            control_of(app).disown(str(promise), reason)


@signals.worker_process_shutdown.connect(weak=False, dispatch_uid="celery_durable.shutdown")
def _on_process_shutdown(**_: Any) -> None:
    """A pool process ends in order."""
    _close_runtimes()


@signals.worker_shutdown.connect(weak=False, dispatch_uid="celery_durable.worker_shutdown")
def _on_worker_shutdown(**_: Any) -> None:
    _close_runtimes()


def _close_runtimes() -> None:
    for app in list(_installed):
        runtime = Runtime.known(app)
        if runtime is not None and runtime.pid == os.getpid():
            runtime.close()
