"""Messages in the caller's own transaction: if it rolls back, they never existed; if it commits, they are sent.

They are recorded through the caller's connection. When its transaction commits, they are sent at once; if sending
fails, or the process dies before, recovery sends them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.engine import Connection

from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError
from celery_durable.runtime import Runtime
from celery_durable.store import django_connection
from celery_durable.store.outbox import IdTaken, forget, insert, present
from celery_durable.store.records import Published, StoredPayload, Unsent

from . import envelope as envelopes
from .after_commit import AwaitingCommit, send_committed
from .capture import capturing
from .start_once import difference
from .stash import Stash
from .tasks import is_durable

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

__all__ = ["DjangoConnection", "DjangoJoined", "Sendable", "captured", "joined_to", "storable"]

logger = logging.getLogger(__name__)

#: The attribute in which a connection keeps what waits for its commit.
_JOINED = "_celery_durable_joined"


class Sendable(Protocol):
    """A task or a signature: it has ``apply_async``."""

    @property
    def app(self) -> Any: ...

    def apply_async(self, args: Any = ..., kwargs: Any = ..., **options: Any) -> Any: ...


class DjangoConnection(Protocol):
    """The type of ``django.db.connection`` and ``django.db.connections[alias]``."""

    @property
    def alias(self) -> str: ...

    @property
    def in_atomic_block(self) -> bool: ...


def captured(app: Celery, publish: Callable[[], Any]) -> tuple[Any, list[Stash]]:
    """What ``publish()`` returns, and the messages that it would have sent, in their order.

    :raises ConfigurationError: under Celery's message protocol 1.
    """
    with capturing(app) as capture:
        result = publish()
    for stash in capture.messages:
        if "id" not in stash.message.headers:
            raise ConfigurationError("messages are recorded under task_protocol = 2 only, which is Celery's default.")
    return result, capture.messages


def storable(app: Celery, runtime: Runtime, stashes: Iterable[Stash]) -> list[tuple[Stash, Published | Unsent]]:
    """Messages as they are sent, and as they are recorded: later changes by the caller do not reach them."""
    found: list[tuple[Stash, Published | Unsent]] = []
    for stash in stashes:
        envelope = stash.envelope(app)
        packed = envelopes.pack(envelope, runtime.envelope_codec)
        row = stash.published(app, packed) if is_durable(app, stash.name) else stash.unsent(packed)
        found.append((stash.frozen(envelope), row))
    return found


def joined_to(connection: Connection) -> Joined:
    """What waits for the commit of an SQLAlchemy connection."""
    return connection.__dict__.get(_JOINED) or Joined(connection)


class Joined:
    """What waits for the commit of a connection's present transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transaction: Any = None
        self._waiting: list[AwaitingCommit] = []
        #: In eager mode: key of the row that stands for a call -> the call to make after the commit.
        self._eager: dict[int, Callable[[], Any]] = {}
        connection.__dict__[_JOINED] = self
        # SQLAlchemy has no event after a commit, so this private method is wrapped. If it is missing, recovery sends.
        commit = getattr(connection, "_commit_impl", None)
        if commit is not None:
            connection.__dict__["_commit_impl"] = lambda: self._commit(commit)

    def add(self, app: Celery, runtime: Runtime, stashes: list[Stash]) -> None:
        """Record messages in the transaction."""
        rows = storable(app, runtime, stashes)
        keys = self._insert(app, runtime, [row for _, row in rows])
        now = time.monotonic()
        for pk, (stash, row) in zip(keys, rows, strict=True):
            self._waiting.append(AwaitingCommit(app, stash, pk, isinstance(row, Published), now))

    def run_at_commit(
        self, runtime: Runtime, what: Sendable, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Eager mode has no messages: run the call after the commit. A row tells whether the commit happened."""
        result, run = _later(what, args, kwargs, options)
        [pk] = self._insert(what.app, runtime, [Unsent(result.id, "(eager)", StoredPayload(0, b""))])
        self._eager[pk] = run
        return result

    def _insert(self, app: Celery, runtime: Runtime, rows: list[Published | Unsent]) -> list[int]:
        if self._connection.get_transaction() is not self._transaction:
            # Messages of an earlier transaction that still wait are dropped: it was rolled back.
            self._waiting, self._eager = [], {}
        after = max([0, *(message.pk for message in self._waiting[-1:]), *self._eager])
        keys = _record(self._connection, app, runtime, rows, after)
        self._transaction = self._connection.get_transaction()
        return keys

    def _commit(self, commit: Callable[[], None]) -> None:
        waiting, eager = self._waiting, self._eager
        self._waiting, self._eager = [], {}
        if waiting or eager:
            kept = self._kept(waiting, eager)
            waiting = [message for message in waiting if message.pk in kept]
            eager = {pk: run for pk, run in eager.items() if pk in kept}
        commit()
        if waiting:
            reached("enqueue.after_commit")
            send_committed(waiting)
        for run in eager.values():
            _run_eagerly(run)

    def _kept(self, waiting: list[AwaitingCommit], eager: Iterable[int]) -> set[int]:
        """The rows that the transaction holds at its end: savepoints, or all of it, may have been rolled back."""
        durable = [message.pk for message in waiting if message.durable]
        plain = [message.pk for message in waiting if not message.durable]
        try:
            kept = present(self._connection, durable, [*plain, *eager])
            forget(self._connection, list(eager))
        except Exception as error:
            logger.debug("nothing is sent at once, because the state of the transaction cannot be read: %s", error)
            return set()
        return kept


class _Hooks:
    """The hooks of one commit of Django's; each sends the messages of one call."""

    def __init__(self) -> None:
        self.begun = False
        #: Applications whose broker did not accept an earlier hook's messages: the other hooks do not try again.
        self.in_vain: set[Celery] = set()


class DjangoJoined:
    """Messages to be sent when Django's transaction of this thread commits.

    :raises ConfigurationError: outside ``atomic()``, and for another database.
    """

    def __init__(self, alias: str, runtime: Runtime) -> None:
        if not django_connection.in_atomic(alias):
            raise ConfigurationError(
                f"Django's connection {alias!r} is not inside transaction.atomic(): there is no transaction that "
                "enqueue() could join."
            )
        django_connection.verify_alias(alias, runtime.database)
        self._alias = alias

    def add(self, app: Celery, runtime: Runtime, stashes: list[Stash]) -> None:
        """Record messages in the transaction."""
        rows = storable(app, runtime, stashes)
        keys = _record(django_connection.Borrowed(self._alias), app, runtime, [row for _, row in rows], 0)
        now = time.monotonic()
        waiting = [
            AwaitingCommit(app, stash, pk, isinstance(row, Published), now)
            for pk, (stash, row) in zip(keys, rows, strict=True)
        ]
        # If a savepoint is rolled back, Django drops its hooks.
        hooks = self._hooks()
        django_connection.on_commit(self._alias, lambda: self._committed(app, waiting, hooks))

    def run_at_commit(
        self, runtime: Runtime, what: Sendable, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Eager mode has no messages: run the call after the commit."""
        result, run = _later(what, args, kwargs, options)
        django_connection.on_commit(self._alias, lambda: _run_eagerly(run))
        return result

    def _hooks(self) -> _Hooks:
        kept = django_connection.Borrowed(self._alias).wrapper.__dict__
        if _JOINED not in kept or kept[_JOINED].begun:
            kept[_JOINED] = _Hooks()
        return kept[_JOINED]  # type: ignore[no-any-return]

    def _committed(self, app: Celery, waiting: list[AwaitingCommit], hooks: _Hooks) -> None:
        reached("enqueue.after_commit")
        hooks.begun = True
        if app in hooks.in_vain:
            logger.warning("%d more message(s) are recorded; recovery sends them", len(waiting))
            return
        durable = [message.pk for message in waiting if message.durable]
        plain = [message.pk for message in waiting if not message.durable]
        try:
            # An id may be in use; and PostgreSQL may have answered the commit with a rollback, unseen by Django.
            kept = present(django_connection.Borrowed(self._alias), durable, plain)
        except Exception as error:
            logger.warning("messages that are recorded are left to recovery: %s", error)
            return
        if not send_committed([message for message in waiting if message.pk in kept]):
            hooks.in_vain.add(app)


def _record(connection: Any, app: Celery, runtime: Runtime, rows: list[Published | Unsent], after: int) -> list[int]:
    def settle(taken: IdTaken) -> None:
        error = difference(app, runtime, taken)
        if error is not None:
            raise error

    settings = runtime.settings
    return insert(connection, settings.namespace, settings.lease_ms, rows, settle=settle, after=after)


def _later(
    what: Sendable, args: Any, kwargs: Any, options: dict[str, Any]
) -> tuple[AsyncResult[Any], Callable[[], Any]]:
    """A call that is made later, and its result."""
    make = getattr(what, "signature", None) or what.clone  # type: ignore[attr-defined]
    signature = make(tuple(args or ()), dict(kwargs or {}), **options)
    return signature.freeze(), signature.apply_async


def _run_eagerly(run: Callable[[], Any]) -> None:
    try:
        run()
    except Exception:
        logger.exception("a task that was enqueued in eager mode failed")
