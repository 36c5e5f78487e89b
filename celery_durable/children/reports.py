"""Tasks of the library's own, which carry the end of a child task that is not durable to the parent that waits.

They run where the parent runs, because its queue is served by workers that have the journal.
"""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, Any, Final

from celery import Task

from celery_durable.codec.refusal import understood
from celery_durable.common.faults import reached
from celery_durable.errors import JournalUnavailable, PayloadError
from celery_durable.messaging.waking import wake
from celery_durable.runtime import Runtime
from celery_durable.store.records import PromiseState, StoredPayload

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["DELIVER", "REJECT", "register", "report"]

logger = logging.getLogger(__name__)

DELIVER: Final = "celery_durable.deliver"
REJECT: Final = "celery_durable.reject"

_OPTIONS: Final[dict[str, Any]] = {
    "base": Task,
    "shared": False,
    "lazy": False,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
    "max_retries": None,
}


def register(app: Any) -> None:
    """Let an app's workers know the tasks."""

    # Not bound to its task: Celery calls an errback that is not, and sends those that are without the exception.
    def reject(request: Any, exc: Any = None, traceback: Any = None, *, promise: str, route: dict[str, str]) -> None:
        _reject(app, request, exc, promise, route)

    app.task(name=DELIVER, bind=True, **_OPTIONS)(_deliver)
    app.task(name=REJECT, **_OPTIONS)(reject)


def _deliver(self: Any, value: Any = None, *, promise: str, error: list[Any] | None = None) -> None:
    """The child has ended: with ``value``, or with an error in the codec's form."""
    runtime = Runtime.of(self.app)
    try:
        if error is None:
            stored = StoredPayload(*runtime.codec.encode({"value": value}, "the value of a child task"))
            end = PromiseState.RESOLVED, stored
        else:
            end = PromiseState.REJECTED, _error_of(runtime, error)
    except PayloadError as refusal:
        end = PromiseState.REJECTED, StoredPayload(*runtime.codec.encode_error(refusal, "an error"))
    try:
        report(self.app, promise, *end)
    except JournalUnavailable as unavailable:
        raise self.retry(exc=unavailable, countdown=min(2**self.request.retries, 60)) from unavailable


def _error_of(runtime: Runtime, error: Any) -> StoredPayload:
    """An error that came by the broker: what cannot be read is not stored.

    :raises PayloadError: when it is none.
    """
    where = "the error of a child task"
    with understood(where):
        codec, text = error
        stored = StoredPayload(codec, base64.b64decode(text))
        runtime.codec.decode_error(*stored, where)
    return stored


def _reject(app: Any, request: Any, exc: Any, promise: str, route: dict[str, str]) -> None:
    """An errback. Celery calls it in the process in which the child failed, perhaps a worker's main process, which has
    no database; so it only sends a message. Where the child's worker does not know it, it is sent with the id alone.
    """
    if exc is None:
        try:
            exc = app.AsyncResult(str(request)).result
        # Whatever the result backend raises, the parent has to be notified.
        except Exception as problem:
            logger.warning("the result backend cannot say why %s failed: %s", request, problem)
    if not isinstance(exc, Exception):
        exc = RuntimeError(f"task {getattr(request, 'id', request)} failed; nothing more is known")
    stored = Runtime.of(app).codec.encode_error(exc, "the error of a child task")
    error = [stored[0], base64.b64encode(stored[1]).decode()]
    app.send_task(DELIVER, kwargs={"promise": promise, "error": error}, **route)


def report(app: Celery, promise: str, state: PromiseState, payload: StoredPayload) -> None:
    """Keep the promise of a child; the first end of it counts.

    :raises JournalUnavailable: when the database did not answer.
    """
    runtime = Runtime.of(app)
    target = runtime.promises.target(promise)
    if target is None or target.token_hash is not None:
        logger.info("nobody waits for the child task of promise %s any more", promise)
        return
    reached("child.before_settle", promise)
    _, woken = runtime.promises.settle(promise, target.pk, state, payload, namespace=runtime.settings.namespace)
    reached("child.after_settle", promise)
    for waking in woken:
        wake(app, waking)
