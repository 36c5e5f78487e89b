"""What a call would publish, captured instead of sent: the messages, and Celery's calls of the result backend.

A chord's size, for example, is stored in Redis when the chord is sent. If sending is deferred, so is this call: it is
kept with the message that is published next, without which the chord cannot end.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend

from .backend_calls import CHORD, SIZE, BackendCall
from .stash import Stash

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Capture", "begin", "capturing", "end", "expect_result", "here", "id_of"]

#: Takes the messages that are published here; None: they are sent.
_here: ContextVar[Capture | None] = ContextVar("celery_durable_capture", default=None)


@dataclass
class Capture:
    """Captured messages, in the order in which they would have been sent."""

    messages: list[Stash] = field(default_factory=list)
    #: Calls that belong to the next message.
    _calls: list[BackendCall] = field(default_factory=list)

    def take(self, stash: Stash) -> None:
        self.messages.append(dataclasses.replace(stash, before=tuple(self._calls)))
        self._calls.clear()

    def call(self, call: BackendCall) -> None:
        self._calls.append(call)


def here() -> Capture | None:
    """The capture that takes messages published here, if any."""
    return _here.get()


@contextlib.contextmanager
def capturing(app: Celery) -> Iterator[Capture]:
    """Take what this thread or coroutine publishes inside; neither broker nor result backend is told."""
    _attend(app.backend)
    capture = Capture()
    token = _here.set(capture)
    try:
        yield capture
    finally:
        _here.reset(token)


def begin(app: Celery) -> Capture:
    """Take what this thread or coroutine publishes until :func:`end`."""
    _attend(app.backend)
    capture = Capture()
    _here.set(capture)
    return capture


def end(capture: Capture) -> None:
    """Stop capturing; the caller keeps what was captured."""
    if _here.get() is capture:
        _here.set(None)


def id_of(message: Any) -> Any:
    """The id of a message that is to be published; in Celery's protocol 1 it is in the body."""
    given = message.headers.get("id")
    return message.body.get("id") if given is None and isinstance(message.body, Mapping) else given


def expect_result(app: Celery, producer: Any, message: Any) -> None:
    """As Celery does when it sends a message: let a result backend that does not store results listen for this one.

    A backend that stores results listens when somebody asks for one, and need not be reachable now.
    """
    backend = app.backend
    if not type(backend).persistent and not message.headers.get("ignore_result"):
        backend.on_task_call(producer, id_of(message))


def _attend(backend: Any) -> None:
    """Wrap a backend object, once, so that it is not told of captured messages."""
    if "durable_attended" in backend.__dict__:
        return
    on_task_call, apply_chord = backend.on_task_call, backend.apply_chord
    set_chord_size = getattr(backend, SIZE, None)

    def quiet_on_task_call(producer: Any, task_id: str) -> Any:
        return on_task_call(producer, task_id) if here() is None else {}

    def put_off_apply_chord(header_result_args: Any, body: Any, **kwargs: Any) -> Any:
        capture = here()
        if capture is None or getattr(apply_chord, "__func__", None) is Backend.apply_chord:
            # By default a task waits for the chord, and this task's message is captured.
            return apply_chord(header_result_args, body, **kwargs)
        backend.ensure_chords_allowed()
        capture.call(BackendCall(CHORD, (header_result_args, body), kwargs))
        return None

    def put_off_set_chord_size(group_id: str, chord_size: int) -> Any:
        assert set_chord_size is not None
        capture = here()
        if capture is None or getattr(set_chord_size, "__func__", None) is Backend.set_chord_size:
            return set_chord_size(group_id, chord_size)
        capture.call(BackendCall(SIZE, (group_id, chord_size)))
        return None

    backend.on_task_call = quiet_on_task_call
    backend.apply_chord = put_off_apply_chord
    if set_chord_size is not None:
        backend.set_chord_size = put_off_set_chord_size
    backend.durable_attended = True
