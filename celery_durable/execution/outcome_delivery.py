"""An outcome on its way to Celery: it counts as passed on when the result backend has it, and what follows has been
sent.

Celery sends callbacks and the rest of a chain, stores the result and counts a chord's part, in this order; whatever of
it fails, ``task_postrun`` comes last. So this watches the calls themselves. What Celery would publish is held back
until it stores the result, so that both happen in one place, and an error of either has one effect: the outcome does
not count as passed on, and recovery passes it on again. Celery does not see that error, or it would call the task
failed.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import EncodeError, SerializationError

from celery_durable.errors import DurableError, JournalUnavailable
from celery_durable.messaging import capture
from celery_durable.messaging.capture import Capture
from celery_durable.runtime import Runtime

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["Returning", "announce", "hold_back", "returned", "withdraw"]

logger = logging.getLogger(__name__)

#: What trying again does not cure: the value, or a message, cannot be had in the form that is asked for.
_FOR_GOOD: Final = (SerializationError, TypeError, ValueError)
#: The same as databases and Redis call it, whichever driver raises it.
_REFUSED: Final = "DataError"


class _ForGood(Exception):
    """An error that would come again."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@dataclass
class Returning:
    """An outcome on its way to Celery."""

    pk: int
    #: Handing it on a second time would send callbacks twice.
    has_callbacks: bool
    #: What Celery publishes meanwhile.
    followers: Capture | None = None
    #: Celery has done with it: stored what is to be stored, and sent what is to be sent.
    told: bool = False


#: Task id -> outcome that is on its way to Celery.
_returning: weakref.WeakKeyDictionary[Runtime, dict[str, Returning]] = weakref.WeakKeyDictionary()


def _under_way(runtime: Runtime) -> dict[str, Returning]:
    found = _returning.get(runtime)
    if found is None:
        found = _returning.setdefault(runtime, {})
    return found


def withdraw(runtime: Runtime, task_id: str) -> None:
    """Celery is notified in another way."""
    _under_way(runtime).pop(task_id, None)


def announce(runtime: Runtime, task: Task[Any, Any], request: Any, pk: int) -> None:
    """The outcome goes to Celery now; it is marked when Celery has done with it."""
    callbacks = any(getattr(request, name, None) for name in ("callbacks", "errbacks", "chain", "chord"))
    _under_way(runtime)[request.id] = Returning(pk, callbacks)
    _attend(task.backend)


def hold_back(runtime: Runtime, task: Task[Any, Any], request: Any) -> None:
    """The value goes to Celery: what it publishes because of it waits for the value to be stored."""
    returning = _under_way(runtime).get(request.id)
    if returning is not None and (request.callbacks or request.chain):
        returning.followers = capture.begin(task.app)


def returned(runtime: Runtime, task_id: str) -> Returning | None:
    """Celery has finished with a task; what was on its way, passed on or not."""
    returning = _under_way(runtime).pop(task_id, None)
    if returning is not None:
        _let_go(returning)
    return returning


def _let_go(returning: Returning) -> Capture | None:
    followers, returning.followers = returning.followers, None
    if followers is not None:
        capture.end(followers)
    return followers


def _attend(backend: Any) -> None:
    """Listen to the outcomes that a backend object gets; once."""
    if "durable_heard" in backend.__dict__:
        return
    done, failed = backend.mark_as_done, backend.mark_as_failure

    def mark_as_done(task_id: str, *args: Any, **kwargs: Any) -> None:
        try:
            _tell(backend.app, task_id, lambda: done(task_id, *args, **kwargs))
        except _ForGood as refused:
            # The error by which Celery turns it into a failure in an orderly way: then that is passed on.
            error = refused.error
            if isinstance(error, EncodeError):
                raise error from None
            raise EncodeError(f"{type(error).__name__}: {error}") from error

    def mark_as_failure(task_id: str, *args: Any, **kwargs: Any) -> None:
        returning = _of(backend.app, task_id)
        if returning is not None:
            # Where the body returned, it is Celery that gave up: then nothing follows.
            _let_go(returning)
        try:
            _tell(backend.app, task_id, lambda: failed(task_id, *args, **kwargs))
        except _ForGood as refused:
            if returning is not None:
                returning.told = True  # as well as it can be
            raise refused.error from None

    backend.mark_as_done, backend.mark_as_failure = mark_as_done, mark_as_failure
    backend.durable_heard = True


def _of(app: Celery, task_id: str) -> Returning | None:
    runtime = Runtime.known(app)
    return None if runtime is None else _under_way(runtime).get(task_id)


def _tell(app: Celery, task_id: str, store: Callable[[], Any]) -> None:
    returning = _of(app, task_id)
    if returning is None:
        store()
        return
    followers = _let_go(returning)
    try:
        if followers is not None:
            _send(app, followers)
        store()
    except MemoryError:
        raise
    except Exception as error:
        if _is_for_good(error):
            raise _ForGood(error) from error
        logger.error(
            "the outcome of %s could not be passed on to Celery (%s: %s); it is in the journal, and is passed on "
            "again later",
            task_id,
            type(error).__name__,
            error,
        )
    else:
        returning.told = True


def _is_for_good(error: Exception) -> bool:
    if isinstance(error, DurableError):
        return not isinstance(error, JournalUnavailable)
    return isinstance(error, _FOR_GOOD) or any(kind.__name__ == _REFUSED for kind in type(error).__mro__)


def _send(app: Celery, followers: Capture) -> None:
    """Publish what was held back, as Celery would have."""
    #: Since 5.7 Celery bounds the tries of these messages, whatever the publisher's policy says.
    bounded: Any = getattr(app.amqp, "_retry_publish", lambda publish: publish())
    with app.producer_or_acquire() as producer:
        for stash in followers.messages:
            for call in stash.before:
                call.tell(app)
            options = {**stash.options, "durable_id": stash.id} if stash.chosen else stash.options
            capture.expect_result(app, producer, stash.message)
            bounded(
                lambda stash=stash, options=options: app.amqp.send_task_message(
                    producer, stash.name, stash.message, **options
                )
            )
