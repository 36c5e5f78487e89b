"""Promises that are settled in the caller's own transaction: rolled back, they were not; committed, the waiting
execution continues.

The messages of those executions are sent after the commit. If this process dies before that, recovery sends them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from celery_durable.errors import ConfigurationError
from celery_durable.messaging.joinable import connection_of
from celery_durable.messaging.waking import wake
from celery_durable.runtime import Runtime
from celery_durable.store import django_connection
from celery_durable.store.promises.settling import Settlement, Waking, settle_for_all, settled_as
from celery_durable.store.records import PromiseState, StoredPayload
from celery_durable.store.same_database import verify_same

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Within", "within"]

logger = logging.getLogger(__name__)

#: Where a connection keeps what waits for its commit.
_JOINED = "_celery_durable_settled"

#: Lets recovery send the message where nothing has come of ours by then, in milliseconds after the settlement.
_PATIENCE_MS = 5000


def within(runtime: Runtime, session: Any) -> Within | None:
    """The transaction in which a promise is settled; None for one of its own.

    :param session: as ``enqueue()`` takes it; None: Django's, where ``durable_outbox_using`` says so and it is open.
    :raises ConfigurationError: for one that cannot be joined, or of another database.
    """
    if session is None:
        using = runtime.settings.outbox_using
        if using is None or not django_connection.in_atomic(using):
            return None
        return _InDjangos(using, runtime)
    alias = django_connection.alias_of(session)
    if alias is None:
        return _InSqlAlchemys(connection_of(session, _CALL, _AWAIT), runtime)
    if not django_connection.in_atomic(alias):
        raise ConfigurationError(
            f"Django's connection {alias!r} is not inside transaction.atomic(): there is no transaction that "
            f"{_CALL} could join."
        )
    return _InDjangos(alias, runtime)


_CALL = "resolve(session=...)"
_AWAIT = "await {}.run_sync(lambda session: resolve(promise_id, token, value, session=session))"


class Within:
    """A transaction of the caller's.

    :param connection: of SQLAlchemy's, or Django's as it is borrowed.
    """

    def __init__(self, connection: Any, runtime: Runtime) -> None:
        self.connection = connection
        self._runtime = runtime

    def settle(self, app: Celery, promise_id: str, pk: int, state: PromiseState, payload: StoredPayload) -> Settlement:
        """Settle a promise, and wake the executions that wait for it after the commit."""
        done, woken = settle_for_all(
            self.connection,
            promise_id,
            pk,
            state,
            payload,
            patience_ms=_PATIENCE_MS,
            namespace=self._runtime.settings.namespace,
            joined=True,
        )
        if woken:
            self._after_commit(promise_id, state, lambda: _wake_all(app, woken))
        return done

    def _after_commit(self, promise_id: str, state: PromiseState, tell: Callable[[], None]) -> None:
        raise NotImplementedError


def _wake_all(app: Celery, woken: list[Waking]) -> None:
    for waking in woken:
        try:
            wake(app, waking)
        except Exception as error:
            logger.warning("%s[%s] is left to recovery: %s", waking.task, waking.id, error)


class _InDjangos(Within):
    def __init__(self, alias: str, runtime: Runtime) -> None:
        django_connection.verify_alias(alias, runtime.database)
        super().__init__(django_connection.Borrowed(alias), runtime)
        self._alias = alias

    def _after_commit(self, promise_id: str, state: PromiseState, tell: Callable[[], None]) -> None:
        # Savepoints that are rolled back take their hooks with them.
        django_connection.on_commit(self._alias, tell)


class _InSqlAlchemys(Within):
    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        verify_same(connection, runtime.database)
        super().__init__(connection, runtime)

    def _after_commit(self, promise_id: str, state: PromiseState, tell: Callable[[], None]) -> None:
        joined = self.connection.__dict__.get(_JOINED) or _Joined(self.connection)
        joined.add(promise_id, state, tell)


class _Joined:
    """What waits for the commit of a connection's present transaction; see :class:`~.messaging.joining.Joined`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transaction: Any = None
        self._waiting: list[tuple[str, PromiseState, Callable[[], None]]] = []
        connection.__dict__[_JOINED] = self
        # SQLAlchemy has an event before a commit and none after it. Where this is not its way any more, recovery sends.
        commit = getattr(connection, "_commit_impl", None)
        if commit is not None:
            connection.__dict__["_commit_impl"] = lambda: self._commit(commit)

    def add(self, promise_id: str, state: PromiseState, tell: Callable[[], None]) -> None:
        transaction = self._connection.get_transaction()
        if transaction is not self._transaction:
            # What waited for another transaction is dropped: that one was rolled back.
            self._transaction, self._waiting = transaction, []
        self._waiting.append((promise_id, state, tell))

    def _commit(self, commit: Callable[[], None]) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            waiting = self._kept(waiting)
        commit()
        for _, _, tell in waiting:
            tell()

    def _kept(
        self, waiting: list[tuple[str, PromiseState, Callable[[], None]]]
    ) -> list[tuple[str, PromiseState, Callable[[], None]]]:
        """Savepoints may have been rolled back, or all of it be lost."""
        if self._connection.get_transaction() is not self._transaction:
            return []
        try:
            states = settled_as(self._connection, [one for one, _, _ in waiting])
        except Exception as error:
            logger.debug("nobody is woken at once, because the state of the transaction cannot be read: %s", error)
            return []
        return [item for item in waiting if states.get(item[0]) is item[1]]
