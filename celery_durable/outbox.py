"""Messages in the caller's own transaction: rolled back, they never existed; committed, they are sent.

What a call would publish is captured and recorded through the caller's connection. When its transaction commits, it is
sent at once; where that fails, or the process dies before, recovery sends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from . import django_orm, starting
from . import envelope as envelopes
from .capture import capturing, expect_result
from .errors import ConfigurationError
from .faults import reached
from .install import install
from .joinable import connection_of
from .publish import Stash, is_durable, past_outbox
from .runtime import Runtime
from .signature import is_empty_chain
from .store.outbox import IdTaken, Published, Unsent, forget, insert, present
from .store.records import StoredPayload
from .store.same import verify_same

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

__all__ = ["Sendable", "Waiting", "captured", "enqueue", "send_committed", "storable"]

logger = logging.getLogger(__name__)

#: Where a connection keeps what waits for its commit.
_JOINED = "_celery_durable_joined"


class Sendable(Protocol):
    """A task, or a signature: what has ``apply_async``."""

    @property
    def app(self) -> Any: ...

    def apply_async(self, args: Any = ..., kwargs: Any = ..., **options: Any) -> Any: ...


class DjangoConnection(Protocol):
    """What ``django.db.connection`` and ``django.db.connections[alias]`` are."""

    @property
    def alias(self) -> str: ...

    @property
    def in_atomic_block(self) -> bool: ...


class Waiting(NamedTuple):
    """A recorded message that waits for the commit."""

    app: Celery
    stash: Stash
    pk: int
    durable: bool
    #: time.monotonic() when it was recorded.
    since: float


def enqueue(
    where: Connection | Session | scoped_session[Any] | DjangoConnection,
    /,
    what: Sendable,
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult[Any]:
    """Send a task in the transaction of ``where``: when that is rolled back, the task never existed; when it commits,
    the task is sent, even if this process dies or the broker loses everything.

    A durable task runs once. The message of any other task may be sent twice, after a crash.

    :param where: an SQLAlchemy ``Session`` or ``Connection`` of the journal's database, or ``connection`` of Django's,
        inside ``atomic()``. Committing stays yours. For an ``AsyncSession`` or ``AsyncConnection``, write
        ``await session.run_sync(enqueue, task, ...)``.
    :param what: a task, or a signature: canvas too.
    :param args: positional arguments, as for ``apply_async``.
    :param kwargs: keyword arguments, as for ``apply_async``.
    :param options: those of ``apply_async``: ``countdown``, ``queue``, ``priority``, ``headers``, ...
    :returns: the result, as ``apply_async`` gives it; nothing will be stored there before the commit.
    :raises ConfigurationError: for a connection of another database, or one in autocommit mode; and for an empty chain.
    :raises DurableIdConflict: when its ``durable_id`` belongs to another call.
    :raises JournalUnavailable: when the journal's database cannot be asked whether it is the same one.
    """
    app = _app_of(what)
    if isinstance(args, (str, bytes)) or not isinstance(args, (Iterable, type(None))):
        raise ConfigurationError(
            f"enqueue() takes the task's arguments as a list or tuple, as apply_async does, not {args!r}: "
            "enqueue(session, task, (1, 2))."
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigurationError(f"enqueue() takes the task's keyword arguments as a dict, not {kwargs!r}.")
    if is_empty_chain(what):
        raise ConfigurationError("enqueue() of an empty chain: there is nothing to send.")
    runtime = Runtime.of(app)
    alias = django_orm.alias_of(where)
    joined: _Joined | DjangoJoined
    if alias is not None:
        joined = DjangoJoined(alias, runtime)
    else:
        connection = connection_of(where)
        verify_same(connection, runtime.database)
        joined = connection.__dict__.get(_JOINED) or _Joined(connection)
    if app.conf.task_always_eager:
        return joined.run_at_commit(runtime, what, args, kwargs, options)
    result: AsyncResult[Any]
    result, stashes = captured(app, lambda: what.apply_async(args, kwargs, **options))
    joined.add(app, runtime, stashes)
    reached("enqueue.after_record")
    return result


# -- the parts, also for others that record what is to be sent ----------------------------------------------------


def captured(app: Celery, publish: Callable[[], Any]) -> tuple[Any, list[Stash]]:
    """What ``publish()`` returns, and the messages that it would have sent, in their order.

    :raises ConfigurationError: under Celery's message protocol 1.
    """
    install(app)
    with capturing(app) as capture:
        result = publish()
    for stash in capture.messages:
        if "id" not in stash.message.headers:
            raise ConfigurationError("messages are recorded under task_protocol = 2 only, which is Celery's default.")
    return result, capture.messages


def storable(app: Celery, runtime: Runtime, stashes: Iterable[Stash]) -> list[tuple[Stash, Published | Unsent]]:
    """Messages as they are recorded, and as they are sent: nobody can change them any more."""
    found: list[tuple[Stash, Published | Unsent]] = []
    for stash in stashes:
        envelope = stash.envelope(app)
        packed = envelopes.pack(envelope, runtime.envelope_codec)
        row = stash.published(app, packed) if is_durable(app, stash.name) else stash.unsent(packed)
        found.append((stash.frozen(envelope), row))
    return found


def send_committed(messages: Iterable[Waiting]) -> bool:
    """Send what was recorded and is committed. What cannot be sent now is left to recovery; nothing is raised.

    :returns: False where the broker did not take it.
    """
    taken = True
    by_app: dict[int, list[Waiting]] = {}
    for message in messages:
        by_app.setdefault(id(message.app), []).append(message)
    for group in by_app.values():
        app, runtime = group[0].app, Runtime.of(group[0].app)
        # A journal in memory has one connection, which the caller may have in hand. And where the commit took so long
        # that recovery may be at the message by now, it is left to it.
        late = time.monotonic() - runtime.settings.lease_timeout / 2
        if runtime.database.in_memory or any(message.since < late for message in group):
            continue
        sent: list[int] = []
        try:
            original = past_outbox(app)
            with app.producer_or_acquire() as producer:
                for message in group:
                    _expect(app, producer, message.stash)
                    message.stash.send(app, message.pk if message.durable else None, original, producer)
                    if not message.durable:
                        sent.append(message.pk)
            reached("enqueue.after_send")
        except Exception as error:
            taken = False
            logger.warning(
                "%d message(s) are recorded and could not be sent at once (%s: %s); recovery sends them",
                len(group),
                type(error).__name__,
                error,
            )
        try:
            runtime.outbox.sent(sent)
        except Exception as error:
            logger.warning("%d message(s) were sent and may be sent once more: %s", len(sent), error)
    return taken


def _expect(app: Celery, producer: Any, stash: Stash) -> None:
    try:
        expect_result(app, producer, stash.message.headers)
    except Exception as error:
        logger.warning("the result backend does not listen for %s[%s]: %s", stash.name, stash.id, error)


# -- the caller's transaction -------------------------------------------------------------------------------------


class _Joined:
    """What waits for the commit of a connection's present transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transaction: Any = None
        self._waiting: list[Waiting] = []
        #: Key of a row that stands for it -> what is run after the commit, in eager mode.
        self._eager: dict[int, Callable[[], Any]] = {}
        connection.__dict__[_JOINED] = self
        # SQLAlchemy has an event before a commit and none after it. Where this is not its way any more, recovery sends.
        commit = getattr(connection, "_commit_impl", None)
        if commit is not None:
            connection.__dict__["_commit_impl"] = lambda: self._commit(commit)

    def add(self, app: Celery, runtime: Runtime, stashes: list[Stash]) -> None:
        """Record messages in the transaction."""
        rows = storable(app, runtime, stashes)
        keys = self._insert(app, runtime, [row for _, row in rows])
        now = time.monotonic()
        for pk, (stash, row) in zip(keys, rows, strict=True):
            self._waiting.append(Waiting(app, stash, pk, isinstance(row, Published), now))

    def run_at_commit(
        self, runtime: Runtime, what: Sendable, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Eager mode knows no messages: run it after the commit. A row tells whether it came to that."""
        result, run = _later(what, args, kwargs, options)
        [pk] = self._insert(what.app, runtime, [Unsent(result.id, "(eager)", StoredPayload(0, b""))])
        self._eager[pk] = run
        return result

    def _insert(self, app: Celery, runtime: Runtime, rows: list[Published | Unsent]) -> list[int]:
        if self._connection.get_transaction() is not self._transaction:
            # What waited for another transaction waited in vain, for that was rolled back.
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

    def _kept(self, waiting: list[Waiting], eager: Iterable[int]) -> set[int]:
        """What the transaction holds at its end: savepoints may have been rolled back, or all of it be lost."""
        durable = [message.pk for message in waiting if message.durable]
        plain = [message.pk for message in waiting if not message.durable]
        try:
            kept = present(self._connection, durable, [*plain, *eager])
            forget(self._connection, list(eager))
        except Exception as error:
            logger.debug("nothing is sent at once, for the transaction cannot be asked what it holds: %s", error)
            return set()
        return kept


class _Hooks:
    """The hooks of one commit of Django's, each of which sends what was enqueued together."""

    def __init__(self) -> None:
        self.begun = False
        #: Applications whose broker did not take what an earlier hook had: the others need not wait for it, too.
        self.in_vain: set[Celery] = set()


class DjangoJoined:
    """What is to be sent at the commit of Django's transaction of this thread.

    :raises ConfigurationError: outside ``atomic()``, and for another database.
    """

    def __init__(self, alias: str, runtime: Runtime) -> None:
        if not django_orm.in_atomic(alias):
            raise ConfigurationError(
                f"Django's connection {alias!r} is not inside transaction.atomic(): there is no transaction that "
                "enqueue() could join."
            )
        django_orm.verify_alias(alias, runtime.database)
        self._alias = alias

    def add(self, app: Celery, runtime: Runtime, stashes: list[Stash]) -> None:
        """Record messages in the transaction."""
        rows = storable(app, runtime, stashes)
        keys = _record(django_orm.Borrowed(self._alias), app, runtime, [row for _, row in rows], 0)
        now = time.monotonic()
        waiting = [
            Waiting(app, stash, pk, isinstance(row, Published), now)
            for pk, (stash, row) in zip(keys, rows, strict=True)
        ]
        # Savepoints that are rolled back take their hooks with them.
        hooks = self._hooks()
        django_orm.on_commit(self._alias, lambda: self._committed(app, waiting, hooks))

    def run_at_commit(
        self, runtime: Runtime, what: Sendable, args: Any, kwargs: Any, options: dict[str, Any]
    ) -> AsyncResult[Any]:
        """Eager mode knows no messages: run it after the commit."""
        result, run = _later(what, args, kwargs, options)
        django_orm.on_commit(self._alias, lambda: _run_eagerly(run))
        return result

    def _hooks(self) -> _Hooks:
        kept = django_orm.Borrowed(self._alias).wrapper.__dict__
        if _JOINED not in kept or kept[_JOINED].begun:
            kept[_JOINED] = _Hooks()
        return kept[_JOINED]  # type: ignore[no-any-return]

    def _committed(self, app: Celery, waiting: list[Waiting], hooks: _Hooks) -> None:
        reached("enqueue.after_commit")
        hooks.begun = True
        if app in hooks.in_vain:
            logger.warning("%d more message(s) are recorded; recovery sends them", len(waiting))
            return
        durable = [message.pk for message in waiting if message.durable]
        plain = [message.pk for message in waiting if not message.durable]
        try:
            # An id may have been known; and PostgreSQL may have answered the commit with a rollback, unseen by Django.
            kept = present(django_orm.Borrowed(self._alias), durable, plain)
        except Exception as error:
            logger.warning("messages that are recorded are left to recovery: %s", error)
            return
        if not send_committed([message for message in waiting if message.pk in kept]):
            hooks.in_vain.add(app)


def _record(connection: Any, app: Celery, runtime: Runtime, rows: list[Published | Unsent], after: int) -> list[int]:
    def settle(taken: IdTaken) -> None:
        error = starting.difference(app, runtime, taken)
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


def _app_of(what: Any) -> Celery:
    if isinstance(what, type) or not callable(getattr(what, "apply_async", None)):
        raise ConfigurationError(
            f"enqueue() takes a task or a signature after the session, not {what!r}: enqueue(session, task, (1, 2)), "
            "or enqueue(session, task.s(1, 2))."
        )
    app = what.app
    return app._get_current_object() if hasattr(app, "_get_current_object") else app  # type: ignore[no-any-return]
