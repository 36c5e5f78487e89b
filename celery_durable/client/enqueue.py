"""``enqueue()``: a task in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from celery_durable.app.choosing import real
from celery_durable.app.installing import install
from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError
from celery_durable.messaging.joinable import connection_of
from celery_durable.messaging.joining import DjangoConnection, DjangoJoined, Joined, Sendable, captured, joined_to
from celery_durable.messaging.signature import is_empty_chain
from celery_durable.runtime import Runtime
from celery_durable.store import django_connection
from celery_durable.store.same_database import verify_same

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult
    from sqlalchemy.orm import Session, scoped_session

__all__ = ["enqueue"]


def enqueue(
    where: Connection | Session | scoped_session[Any] | DjangoConnection,
    /,
    what: Sendable,
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncResult[Any]:
    """Send a task in the transaction of ``where``. If that is rolled back, the task is never sent; if it commits, the
    task is sent, even if this process dies or the broker loses everything.

    A durable task runs once. The message of any other task may be sent twice, after a crash.

    :param where: an SQLAlchemy ``Session`` or ``Connection`` of the journal's database, or ``connection`` of Django's,
        inside ``atomic()``. The commit stays yours. For an ``AsyncSession`` or ``AsyncConnection``, write
        ``await session.run_sync(enqueue, task, ...)``.
    :param what: a task, or a signature: canvas too.
    :param args: positional arguments, as for ``apply_async``.
    :param kwargs: keyword arguments, as for ``apply_async``.
    :param options: those of ``apply_async``: ``countdown``, ``queue``, ``priority``, ``headers``, ...
    :returns: the result, as from ``apply_async``; it stays empty until the commit.
    :raises ConfigurationError: for a connection of another database, or one in autocommit mode; and for an empty chain.
    :raises DurableIdConflict: when its ``durable_id`` belongs to another call.
    :raises JournalUnavailable: when the journal's database does not answer whether it is the same one.
    """
    app = _app_of(what)
    install(app)
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
    alias = django_connection.alias_of(where)
    joined: Joined | DjangoJoined
    if alias is not None:
        joined = DjangoJoined(alias, runtime)
    else:
        connection = connection_of(where)
        verify_same(connection, runtime.database)
        joined = joined_to(connection)
    if app.conf.task_always_eager:
        return joined.run_at_commit(runtime, what, args, kwargs, options)
    result: AsyncResult[Any]
    result, stashes = captured(app, lambda: what.apply_async(args, kwargs, **options))
    joined.add(app, runtime, stashes)
    reached("enqueue.after_record")
    return result


def _app_of(what: Any) -> Celery:
    if isinstance(what, type) or not callable(getattr(what, "apply_async", None)):
        raise ConfigurationError(
            f"enqueue() takes a task or a signature after the session, not {what!r}: enqueue(session, task, (1, 2)), "
            "or enqueue(session, task.s(1, 2))."
        )
    return real(what.app)  # type: ignore[no-any-return]
