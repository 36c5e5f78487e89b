"""Keeping promises from outside: a web view, another service, the command line. No worker is needed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, PromiseSettled, WrongToken
from .faults import reached
from .install import app_of
from .runtime import Runtime
from .store.deciding import settle_and_note
from .store.promise_rows import Target
from .store.records import PromiseState, StoredPayload
from .store.settling import Settlement
from .tokens import fits
from .waking import wake

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["heartbeat", "reject", "resolve", "settle"]


def resolve(promise_id: str, token: str, value: Any = None, *, app: Celery | None = None) -> None:
    """Keep a promise: the execution that waits for it goes on with ``value``. Before it waits is early enough.

    The first one wins. To say the same once more, because an answer was lost, is no error.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param value: anything that the journal can store.
    :param app: the Celery application; default: the current one, or in a thread that has none, the only one there is.
    :raises ConfigurationError: no application is given, and it is not clear which is meant.
    :raises WrongToken: there is no promise of this id and token.
    :raises PromiseSettled: it is settled otherwise already, or has expired.
    :raises PayloadError: the value cannot be stored, or is too large (:class:`PayloadTooLarge`).
    :raises JournalUnavailable: the database did not answer; perhaps it is done all the same. Try again.
    """
    runtime = _runtime(app)
    payload = StoredPayload(*runtime.codec.encode(value, f"the value of promise {promise_id}"))
    _settle(app, promise_id, token, PromiseState.RESOLVED, payload)


def reject(promise_id: str, token: str, error: Exception | str, *, app: Celery | None = None) -> None:
    """Break a promise: the execution that waits for it gets a :class:`PromiseRejected`.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param error: why: a text, or an exception, which is stored as the errors of steps are.
    :param app: the Celery application; default: the current one, or in a thread that has none, the only one there is.
    :raises ConfigurationError: for an ``error`` that is neither; and as :func:`resolve`.
    :raises WrongToken, PromiseSettled, JournalUnavailable: as :func:`resolve`.
    """
    _settle(app, promise_id, token, PromiseState.REJECTED, reason_of(_runtime(app), promise_id, error))


def heartbeat(promise_id: str, token: str, *, app: Celery | None = None) -> None:
    """A sign of life of whoever is to keep a promise: it expires ``heartbeat=`` after this, and not before.

    :param promise_id: :attr:`Promise.id`.
    :param token: :attr:`Promise.token`.
    :param app: the Celery application; default: the current one, or in a thread that has none, the only one there is.
    :raises ConfigurationError: the promise expects none: it was made without ``heartbeat=``; and as :func:`resolve`.
    :raises WrongToken, PromiseSettled, JournalUnavailable: as :func:`resolve`.
    """
    runtime = _runtime(app)
    target = find(runtime, promise_id, token)
    if target.heartbeat_ms is None:
        raise ConfigurationError(
            f"promise {promise_id} expects no signs of life: make it with promise({target.name!r}, heartbeat=...)."
        )
    _check(runtime.promises.beat(promise_id, target.pk), promise_id)


# -- the parts, for the command line too --------------------------------------------------------------------------


def reason_of(runtime: Runtime, promise_id: str, error: Exception | str) -> StoredPayload:
    """Why a promise was rejected, as it is stored."""
    where = f"the reason for which promise {promise_id} was rejected"
    if isinstance(error, Exception):
        return StoredPayload(*runtime.codec.encode_error(error, where))
    if not isinstance(error, str):
        raise ConfigurationError(f"reject() takes a text or an exception, not {error!r}.")
    return StoredPayload(*runtime.codec.encode(error, where))


def find(runtime: Runtime, promise_id: Any, token: Any) -> Target:
    """A promise, for somebody who has its token.

    :raises WrongToken: whether there is no such promise, or the token is another one.
    """
    if not isinstance(promise_id, str) or not isinstance(token, str):
        raise WrongToken(_NO_SUCH)
    target = runtime.promises.target(promise_id)
    if not fits(token, None if target is None else target.token_hash) or target is None:
        raise WrongToken(_NO_SUCH)
    return target


_NO_SUCH = "there is no promise of this id and token. Both are as the body's Promise gives them: .id and .token"


def settle(
    app: Celery | None,
    promise_id: str,
    target: Target,
    state: PromiseState,
    payload: StoredPayload,
    *,
    note: StoredPayload | None = None,
) -> Settlement:
    """Settle a promise, and let the execution that waits for it go on.

    :param note: who has decided that in the place of whoever is to keep it; goes into the execution's journal.
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


def _settle(app: Celery | None, promise_id: str, token: str, state: PromiseState, payload: StoredPayload) -> None:
    settle(app, promise_id, find(_runtime(app), promise_id, token), state, payload)


def _check(done: Settlement, promise_id: str) -> None:
    if done in (Settlement.DONE, Settlement.AGAIN):
        return
    if done is Settlement.GONE:
        raise WrongToken(_NO_SUCH)
    what = "its time had run out" if done is Settlement.EXPIRED else f"it has been {done.value} already, otherwise"
    raise PromiseSettled(
        f"promise {promise_id} cannot be settled now: {what}.", promise_id=promise_id, state=done.value
    )


def _runtime(app: Celery | None) -> Runtime:
    return Runtime.of(app_of(app))
