"""What happens when a message is published: the outbox, and messages that a body sends under its own id.

The application's task sender is wrapped, for that is the one place through which every message goes: ``delay``,
canvas, ``send_task``, beat and retries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601

from . import capture, starting
from . import envelope as envelopes
from .capture import BackendCall
from .django_orm import in_atomic
from .errors import ConfigurationError
from .faults import reached
from .runtime import Runtime
from .store.outbox import Published, Unsent
from .store.records import StoredPayload

if TYPE_CHECKING:
    from celery import Celery

    from .session import Session

__all__ = [
    "Stash",
    "broker_errors",
    "is_durable",
    "outbox_batch",
    "publish_stashed",
    "publish_stored",
    "stashing",
    "wrap_sender",
]

logger = logging.getLogger(__name__)

#: The delivery whose body runs here: messages under its own id are held back until its state is committed.
stashing: ContextVar[Session | None] = ContextVar("celery_durable_session", default=None)
#: Messages of an open :func:`outbox_batch`.
_batch: ContextVar[list[tuple[Celery, Stash]] | None] = ContextVar("celery_durable_batch", default=None)


@dataclass(frozen=True)
class Stash:
    """A message on its way to the broker, with everything its sender was given."""

    name: str
    message: Any
    options: dict[str, Any]
    #: Its id is a ``durable_id``: the call is done once.
    chosen: bool = False
    #: What the result backend is told before it is sent.
    before: tuple[BackendCall, ...] = ()

    @property
    def id(self) -> str:
        return str(self.message.headers["id"])

    @property
    def retries(self) -> int:
        return int(self.message.headers.get("retries") or 0)

    @property
    def replacements(self) -> int:
        return int(self.message.headers.get("replaced_task_nesting") or 0)

    def envelope(self, app: Celery) -> dict[str, Any]:
        """The message as it is stored."""
        envelope = envelopes.from_message(self.message, self.options, app)
        if self.before:
            envelope["before"] = [call.stored() for call in self.before]
        return envelope

    def delay_ms(self) -> int:
        """Milliseconds until the message's ETA; 0 without one."""
        eta = self.message.headers.get("eta")
        if not eta:
            return 0
        when = maybe_iso8601(eta)
        assert when is not None
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.timezone.utc)
        return max(0, int((when - dt.datetime.now(dt.timezone.utc)).total_seconds() * 1000))

    def published(self, app: Celery, envelope: StoredPayload) -> Published:
        """The row that the outbox writes for a durable task."""
        hashed = None
        if self.chosen:
            args, kwargs, _ = self.message.body
            serializer = self.options.get("serializer") or app.conf.task_serializer
            hashed = starting.hash_of(self.name, args, kwargs, serializer)
        return Published(self.id, self.name, self.retries, envelope, self.delay_ms(), self.replacements, hashed)

    def unsent(self, envelope: StoredPayload) -> Unsent:
        """The row that the outbox writes for any other task."""
        return Unsent(self.id, self.name, envelope)

    def frozen(self, envelope: Mapping[str, Any]) -> Stash:
        """The message as it was put into the envelope: its sender may change an argument until it is sent."""
        message = self.message._replace(headers=dict(self.message.headers), body=envelopes.body_of(envelope))
        return dataclasses.replace(self, message=message)

    def send(self, app: Celery, pk: int | None, original: Callable[..., Any], producer: Any) -> Any:
        """Hand it to the broker, with the key of its execution where it has one."""
        for call in self.before:
            call.tell(app)
        if pk is not None:
            self.message.headers[envelopes.PK_HEADER] = str(pk)
        return original(producer, self.name, self.message, **self.options)


def rows_of(app: Celery, runtime: Runtime, stashes: list[Stash]) -> list[Published]:
    """The rows that the outbox writes for durable tasks."""
    return [s.published(app, envelopes.pack(s.envelope(app), runtime.envelope_codec)) for s in stashes]


def is_durable(app: Celery, name: str) -> bool:
    """Whether this process knows the task and it is a durable one.

    Under ``Celery(task_cls=DurableTask)`` Celery's own tasks are of that class too, and are not durable.
    """
    from .task import DurableTask

    return isinstance(app.tasks.get(name), DurableTask) and not name.startswith("celery.")


def wrap_sender(app: Celery, original: Callable[..., Any]) -> Callable[..., Any]:
    """The task sender of an app, with the outbox in front of it."""

    def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
        captured = capture.here()
        durable_id = options.pop("durable_id", None)
        chosen = durable_id is not None
        if chosen:
            if not is_durable(app, name):
                raise ConfigurationError(_not_durable(app, name, durable_id))
            starting.check_place(name, message, durable_id)
        elif captured is None and envelopes.PK_HEADER in message.headers:
            return original(producer, name, message, **options)
        stash = Stash(name, message, options, chosen)
        if captured is not None:
            captured.take(stash)
            return None
        session = stashing.get()
        own = session is not None and message.headers.get("id") == session.request.id and not chosen
        if not own and _joins(app, stash):
            return None
        if not chosen and not is_durable(app, name):
            return original(producer, name, message, **options)
        if own:
            assert session is not None
            session.stash = stash
            return None
        runtime = Runtime.of(app)
        if not (runtime.settings.outbox or chosen):
            return original(producer, name, message, **options)
        batch = _batch.get()
        if batch is not None:
            batch.append((app, stash))
            return None
        reached("outbox.before_record", str(message.headers["id"]))
        [pk] = starting.record(app, runtime, rows_of(app, runtime, [stash]))
        reached("outbox.after_record", str(message.headers["id"]))
        if pk is None:
            logger.info("%s[%s] was called before, and is not sent again", name, message.headers["id"])
            return None
        return _send_recorded(app, stash, pk, original, producer)

    send_task_message.past_outbox = original  # type: ignore[attr-defined]
    return send_task_message


def _joins(app: Celery, stash: Stash) -> bool:
    """Whether the message was recorded in the open transaction of Django's."""
    runtime = Runtime.of(app)
    using = runtime.settings.outbox_using
    if using is None:
        return False
    try:
        if not in_atomic(using):
            return False
    except ConfigurationError as error:
        raise ConfigurationError(f"durable_outbox_using: {error.message}") from error
    from .outbox import DjangoJoined

    DjangoJoined(using, runtime).add(app, runtime, [stash])
    return True


def _not_durable(app: Celery, name: str, durable_id: Any) -> str:
    if name in app.tasks:
        return (
            f"durable_id {durable_id!r}: {name} is not a durable task, so that nothing can see to it that it runs once."
        )
    return (
        f"durable_id {durable_id!r}: this process does not know task {name}, so that nobody can say whether it is "
        f"durable. Import its module, or declare it here: app.task(function, base=DurableTask, name={name!r})"
    )


def _send_recorded(app: Celery, stash: Stash, pk: int, original: Callable[..., Any], producer: Any) -> Any:
    """Send a message whose row is committed: if the broker fails now, recovery sends it later."""
    try:
        return stash.send(app, pk, original, producer)
    except Exception as error:
        if not isinstance(error, broker_errors(app)):
            raise
        _say_recorded(stash.name, stash.message.headers["id"], error)
        return None


def publish_stored(app: Celery, envelope: dict[str, Any], pk: int) -> None:
    """Send a stored message whose row is committed: if the broker fails now, recovery sends it later."""
    try:
        with app.producer_or_acquire() as producer:
            envelopes.resend(app, envelope, pk, producer=producer)
    except Exception as error:
        if not isinstance(error, broker_errors(app)):
            raise
        _say_recorded(envelope["headers"]["task"], envelope["headers"]["id"], error)


def _say_recorded(name: str, execution_id: str, error: Exception) -> None:
    logger.warning(
        "the broker did not take %s[%s] (%s: %s); it is recorded and will be sent by recovery",
        name,
        execution_id,
        type(error).__name__,
        error,
    )


def broker_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """What sending raises when the broker is out of reach."""
    from kombu.exceptions import OperationalError

    connection = app.connection_for_write()
    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def past_outbox(app: Celery) -> Callable[..., Any]:
    """The sender of an app, without the outbox."""
    sender = app.amqp.send_task_message
    return getattr(sender, "past_outbox", sender)  # type: ignore[no-any-return]


def publish_stashed(app: Celery, stash: Stash, pk: int, runtime: Runtime) -> None:
    """Send a message that was held back until its execution was committed; recovery is the safety net."""
    with app.producer_or_acquire() as producer:
        _send_recorded(app, stash, pk, past_outbox(app), producer)


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
        keys = starting.record(app, runtime, rows_of(app, runtime, [stash for _, stash in group]))
        original = past_outbox(app)
        with app.producer_or_acquire() as producer:
            for pk, (_, stash) in zip(keys, group, strict=True):
                if pk is not None:
                    _send_recorded(app, stash, pk, original, producer)
