"""Settles promises from outside: from a web view, another service, the command line. Needs no worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from celery_durable.app.installing import app_of
from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError, PromiseSettled, WrongToken
from celery_durable.messaging.joining import DjangoConnection
from celery_durable.messaging.waking import wake
from celery_durable.runtime import Runtime
from celery_durable.store.decisions import settle_and_note
from celery_durable.store.promises.rows import Target
from celery_durable.store.promises.settling import Settlement
from celery_durable.store.records import PromiseState, StoredPayload
from celery_durable.waits.tokens import fits

from .settling_within import within

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session, scoped_session


__all__ = ["heartbeat", "reject", "resolve", "settle"]

#: What has a transaction that can be joined.
Joinable: TypeAlias = "Connection | Session | scoped_session[Any] | DjangoConnection"


def resolve(
    promise_id: str, token: str, value: Any = None, *, session: Joinable | None = None, app: Celery | None = None
) -> None:
    """Resolve a promise: the execution that waits for it continues with ``value``. It may be resolved before anybody
    waits.

    The first call wins. Repeating the same call, because its answer was lost, is not an error.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param value: anything that the journal can store.
    :param session: an SQLAlchemy ``Session`` or ``Connection`` of the journal's database, or ``connection`` of Django's
        inside ``atomic()``: the promise is resolved when that commits, and not if that is rolled back. Without it, it
        is resolved at once; inside ``atomic()``, with its commit, if ``durable_outbox_using`` names its database.
    :param app: the Celery application; default: the current one, or in a thread without a current one, the only one.
    :raises ConfigurationError: ``app`` is not given, and it is not clear which application is meant; or ``session``
        belongs to another database, or has no transaction.
    :raises WrongToken: there is no promise of this id and token.
    :raises PromiseSettled: it is already settled in another way, has expired, or its execution was cancelled.
    :raises PayloadError: the value cannot be stored, or is too large (:class:`PayloadTooLarge`).
    :raises JournalUnavailable: the database did not answer. The promise may be resolved all the same: try again.
    """
    runtime = _runtime(app)
    payload = StoredPayload(*runtime.codec.encode(value, f"the value of promise {promise_id}"))
    _settle(app, promise_id, token, PromiseState.RESOLVED, payload, session)


def reject(
    promise_id: str,
    token: str,
    error: Exception | str,
    *,
    session: Joinable | None = None,
    app: Celery | None = None,
) -> None:
    """Reject a promise: the execution that waits for it gets a :class:`PromiseRejected`.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param error: the reason: a text, or an exception, which is stored like an error of a step.
    :param session: as for :func:`resolve`.
    :param app: the Celery application; default: the current one, or in a thread without a current one, the only one.
    :raises ConfigurationError: for any other ``error``, and as :func:`resolve`.
    :raises WrongToken, PromiseSettled, JournalUnavailable: as :func:`resolve`.
    """
    _settle(app, promise_id, token, PromiseState.REJECTED, rejection_payload(_runtime(app), promise_id, error), session)


def heartbeat(promise_id: str, token: str, *, app: Celery | None = None) -> None:
    """Report that work on a promise continues: it expires ``heartbeat=`` after this, and not before.

    It counts at once, and joins no transaction.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param app: the Celery application; default: the current one, or in a thread without a current one, the only one.
    :raises ConfigurationError: the promise was made without ``heartbeat=``; and as :func:`resolve`.
    :raises WrongToken, PromiseSettled, JournalUnavailable: as :func:`resolve`.
    """
    runtime = _runtime(app)
    target = find(runtime, promise_id, token)
    if target.heartbeat_ms is None:
        raise ConfigurationError(
            f"promise {promise_id} expects no heartbeats: make it with promise({target.name!r}, heartbeat=...)."
        )
    _check(runtime.promises.beat(promise_id, target.pk), promise_id)


# -- the parts, for the command line too --------------------------------------------------------------------------


def rejection_payload(runtime: Runtime, promise_id: str, error: Exception | str) -> StoredPayload:
    """Why a promise was rejected, as it is stored."""
    where = f"the reason for which promise {promise_id} was rejected"
    if isinstance(error, Exception):
        return StoredPayload(*runtime.codec.encode_error(error, where))
    if not isinstance(error, str):
        raise ConfigurationError(f"reject() takes a text or an exception, not {error!r}.")
    return StoredPayload(*runtime.codec.encode(error, where))


def find(runtime: Runtime, promise_id: Any, token: Any, looked: Target | None = None) -> Target:
    """A promise, for somebody who has its token.

    :param looked: what was found of it, where that is known.

    :raises WrongToken: whether there is no such promise, or the token is another one.
    """
    if not isinstance(promise_id, str) or not isinstance(token, str):
        raise WrongToken(_NO_SUCH)
    target = looked or runtime.promises.target(promise_id)
    if not fits(token, None if target is None else target.token_hash) or target is None:
        raise WrongToken(_NO_SUCH)
    return target


_NO_SUCH = "there is no promise with this id and token. Pass both as the body's Promise gives them: .id and .token"


def settle(
    app: Celery | None,
    promise_id: str,
    target: Target,
    state: PromiseState,
    payload: StoredPayload,
    *,
    note: StoredPayload | None = None,
) -> Settlement:
    """Settle a promise, and let the execution that waits for it continue.

    :param note: who decided that instead of the token's owner; recorded in the execution's journal.
    :raises PromiseSettled: it is settled otherwise already.
    """
    app = app_of(app)
    runtime = Runtime.of(app)
    reached("promise.before_resolve")
    namespace = runtime.settings.namespace
    if note is None:
        done, woken = runtime.promises.settle(promise_id, target.pk, state, payload, namespace=namespace)
    else:
        done, woken = settle_and_note(
            runtime.database, promise_id, target.pk, state, payload, note=note, namespace=namespace
        )
    reached("promise.after_resolve")
    _check(done, promise_id)
    for waking in woken:
        wake(app, waking)
    return done


def _settle(
    app: Celery | None,
    promise_id: str,
    token: str,
    state: PromiseState,
    payload: StoredPayload,
    session: Joinable | None,
) -> None:
    app = app_of(app)
    runtime = Runtime.of(app)
    transaction = within(runtime, session)
    if transaction is None:
        settle(app, promise_id, find(runtime, promise_id, token), state, payload)
        return
    looked = None
    if runtime.database.in_memory and isinstance(promise_id, str):
        # It has one connection, which is the caller's by now.
        looked = runtime.promises.target_in(transaction.connection, promise_id)
    target = find(runtime, promise_id, token, looked)
    reached("promise.before_resolve")
    _check(transaction.settle(app, promise_id, target.pk, state, payload), promise_id)
    reached("promise.after_resolve")


def _check(done: Settlement, promise_id: str) -> None:
    if done in (Settlement.DONE, Settlement.AGAIN):
        return
    if done is Settlement.GONE:
        raise WrongToken(_NO_SUCH)
    what = f"it has already been {done.value}, in another way"
    if done is Settlement.EXPIRED:
        what = "it had expired"
    elif done is Settlement.CANCELLED:
        what = "the execution that made it was cancelled, so nobody waits for it"
    raise PromiseSettled(
        f"promise {promise_id} cannot be settled now: {what}.", promise_id=promise_id, state=done.value
    )


def _runtime(app: Celery | None) -> Runtime:
    return Runtime.of(app_of(app))
