"""Keeps a message until the transaction that it belongs to is committed."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601

from celery_durable.runtime import Runtime
from celery_durable.store.records import Published, StoredPayload, Unsent

from . import envelope as envelopes
from .backend_calls import BackendCall
from .durable_id import call_hash_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Stash", "rows_of"]


@dataclass(frozen=True)
class Stash:
    """A message on its way to the broker, with all arguments of the call that sends it."""

    name: str
    message: Any
    options: dict[str, Any]
    #: Its id is a ``durable_id``: the call is made once.
    chosen: bool = False
    #: Calls of the result backend to be made before it is sent.
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
            hashed = call_hash_of(self.name, args, kwargs, serializer)
        return Published(self.id, self.name, self.retries, envelope, self.delay_ms(), self.replacements, hashed)

    def unsent(self, envelope: StoredPayload) -> Unsent:
        """The row that the outbox writes for any other task."""
        return Unsent(self.id, self.name, envelope)

    def frozen(self, envelope: Mapping[str, Any]) -> Stash:
        """The message as it is in the envelope: the caller may still change an argument before it is sent."""
        message = self.message._replace(headers=dict(self.message.headers), body=envelopes.own_body(envelope))
        return dataclasses.replace(self, message=message)

    def send(self, app: Celery, pk: int | None, original: Callable[..., Any], producer: Any) -> Any:
        """Hand the message to the broker, with the key of its execution if it has one."""
        for call in self.before:
            call.tell(app)
        if pk is not None:
            self.message.headers[envelopes.PK_HEADER] = str(pk)
        return original(producer, self.name, self.message, **self.options)


def rows_of(app: Celery, runtime: Runtime, stashes: list[Stash]) -> list[Published]:
    """The rows that the outbox writes for durable tasks."""
    return [s.published(app, envelopes.pack(s.envelope(app), runtime.envelope_codec)) for s in stashes]
