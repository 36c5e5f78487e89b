"""What happens when a message is published: the outbox, and messages that a body sends under its own id.

The application's task sender is wrapped, because every message goes through it: ``delay``, canvas, ``send_task``, beat
and retries.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError
from celery_durable.runtime import Runtime
from celery_durable.store.django_connection import in_atomic

from . import capture
from . import envelope as envelopes
from .delivery import stashing
from .durable_id import check_id, check_place
from .joining import DjangoJoined
from .sending import past_outbox, send_recorded
from .start_once import record
from .stash import Stash, rows_of
from .tasks import is_durable

if TYPE_CHECKING:
    from celery import Celery


__all__ = ["outbox_batch", "wrap_sender"]

logger = logging.getLogger(__name__)

#: Messages of an open :func:`outbox_batch`.
_batch: ContextVar[list[tuple[Celery, Stash]] | None] = ContextVar("celery_durable_batch", default=None)


def wrap_sender(app: Celery, original: Callable[..., Any]) -> Callable[..., Any]:
    """The task sender of an app, with the outbox in front of it."""

    def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
        captured = capture.here()
        durable_id = options.pop("durable_id", None)
        chosen = durable_id is not None
        if chosen:
            if not is_durable(app, name):
                raise ConfigurationError(_not_durable(app, name, durable_id))
            check_place(name, message, durable_id)
        elif captured is None and envelopes.PK_HEADER in message.headers:
            return original(producer, name, message, **options)
        stash = Stash(name, message, options, chosen)
        if captured is not None:
            captured.take(stash)
            return None
        delivery = stashing.get()
        own = delivery is not None and message.headers.get("id") == delivery.request.id and not chosen
        if not own and _joins(app, stash):
            return None
        if not chosen and not is_durable(app, name):
            return original(producer, name, message, **options)
        # Checked here, so that the caller gets the error.
        check_id(capture.id_of(message), "task_id")
        if own:
            assert delivery is not None
            delivery.stash = stash
            return None
        runtime = Runtime.of(app)
        if not (runtime.settings.outbox or chosen):
            return original(producer, name, message, **options)
        batch = _batch.get()
        if batch is not None:
            batch.append((app, stash))
            return None
        reached("outbox.before_record", str(message.headers["id"]))
        [pk] = record(app, runtime, rows_of(app, runtime, [stash]))
        reached("outbox.after_record", str(message.headers["id"]))
        if pk is None:
            logger.info("%s[%s] was called before, and is not sent again", name, message.headers["id"])
            return None
        return send_recorded(app, stash, pk, original, producer)

    send_task_message.past_outbox = original  # type: ignore[attr-defined]
    return send_task_message


def _joins(app: Celery, stash: Stash) -> bool:
    """Whether the message was recorded in Django's open transaction."""
    runtime = Runtime.of(app)
    using = runtime.settings.outbox_using
    if using is None:
        return False
    try:
        if not in_atomic(using):
            return False
    except ConfigurationError as error:
        raise ConfigurationError(f"durable_outbox_using: {error.message}") from error
    DjangoJoined(using, runtime).add(app, runtime, [stash])
    return True


def _not_durable(app: Celery, name: str, durable_id: Any) -> str:
    if name in app.tasks:
        return f"durable_id {durable_id!r}: {name} is not a durable task, so nothing ensures that it runs once."
    return (
        f"durable_id {durable_id!r}: this process does not know task {name}, and cannot tell whether it is durable. "
        f"Import its module, or declare it here: app.task(function, base=DurableTask, name={name!r})"
    )


@contextlib.contextmanager
def outbox_batch() -> Iterator[None]:
    """Record all durable messages published inside with one commit, and send them at the end.

    Needs ``durable_outbox``, or a ``durable_id``. Leaving with an exception records and sends nothing.

    :raises JournalUnavailable: when they could not be recorded; then none was accepted.
    :raises DurableIdConflict: when one's ``durable_id`` belongs to another call; then none was accepted.
    """
    messages: list[tuple[Celery, Stash]] = []
    token = _batch.set(messages)
    try:
        yield
    finally:
        _batch.reset(token)
    by_app: dict[int, list[tuple[Celery, Stash]]] = {}
    for app, stash in messages:
        by_app.setdefault(id(app), []).append((app, stash))
    for group in by_app.values():
        app = group[0][0]
        runtime = Runtime.of(app)
        keys = record(app, runtime, rows_of(app, runtime, [stash for _, stash in group]))
        original = past_outbox(app)
        with app.producer_or_acquire() as producer:
            for pk, (_, stash) in zip(keys, group, strict=True):
                if pk is not None:
                    send_recorded(app, stash, pk, original, producer)
