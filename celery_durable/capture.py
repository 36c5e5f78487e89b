"""What a call would publish, taken instead of sent: the messages, and what Celery tells the result backend with them.

A chord's size, say, is told to Redis when the chord is sent. Where sending is put off, so is that: it belongs to the
message that is published next, without which the chord cannot end.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery.backends.base import Backend
from celery.result import GroupResult, result_from_tuple

if TYPE_CHECKING:
    from celery import Celery

    from .publish import Stash

__all__ = ["BackendCall", "Capture", "capturing", "expect_result", "here", "repeat"]

#: What is published here is taken; None: it is sent.
_here: ContextVar[Capture | None] = ContextVar("celery_durable_capture", default=None)

_SIZE: Final = "set_chord_size"
_CHORD: Final = "apply_chord"


@dataclass(frozen=True)
class BackendCall:
    """Something the result backend is to be told before a message is sent."""

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def tell(self, app: Celery) -> None:
        """Tell it now."""
        getattr(app.backend, self.method)(*self.args, **self.kwargs)

    def stored(self) -> list[Any]:
        """The same in plain types."""
        if self.method == _CHORD:
            # Its other arguments are for backends that publish a task which waits for the chord; it was captured.
            group_id, results = self.args[0]
            return [self.method, GroupResult(group_id, list(results)).as_tuple()]
        return [self.method, *self.args]


@dataclass
class Capture:
    """What was taken, in the order in which it would have been sent."""

    messages: list[Stash] = field(default_factory=list)
    #: For the next message.
    _calls: list[BackendCall] = field(default_factory=list)

    def take(self, stash: Stash) -> None:
        self.messages.append(dataclasses.replace(stash, before=tuple(self._calls)))
        self._calls.clear()

    def call(self, call: BackendCall) -> None:
        self._calls.append(call)


def here() -> Capture | None:
    """Where to put a message that is published here."""
    return _here.get()


@contextlib.contextmanager
def capturing(app: Celery) -> Iterator[Capture]:
    """Take what this thread or coroutine publishes inside; neither broker nor result backend hears of it."""
    _attend(app.backend)
    capture = Capture()
    token = _here.set(capture)
    try:
        yield capture
    finally:
        _here.reset(token)


def repeat(app: Celery, stored: list[list[Any]]) -> None:
    """Tell the result backend what was put off; more than once does no harm."""
    for method, *args in stored:
        if method == _CHORD:
            header: Any = result_from_tuple(args[0], app)
            app.backend.apply_chord((header.id, header.results), None)
        elif method == _SIZE:
            app.backend.set_chord_size(*args)


def expect_result(app: Celery, producer: Any, headers: Mapping[str, Any]) -> None:
    """As Celery does when it sends a message: let the result backend listen for the result, if it does not keep it.

    One that keeps it listens when somebody asks, and need not be reached now.
    """
    backend = app.backend
    if not type(backend).persistent and not headers.get("ignore_result"):
        backend.on_task_call(producer, headers["id"])


def _attend(backend: Any) -> None:
    """Let a backend object hear nothing of what is captured; once."""
    if "durable_attended" in backend.__dict__:
        return
    on_task_call, apply_chord = backend.on_task_call, backend.apply_chord
    set_chord_size = getattr(backend, _SIZE, None)

    def quiet_on_task_call(producer: Any, task_id: str) -> Any:
        return on_task_call(producer, task_id) if here() is None else {}

    def put_off_apply_chord(header_result_args: Any, body: Any, **kwargs: Any) -> Any:
        capture = here()
        if capture is None or getattr(apply_chord, "__func__", None) is Backend.apply_chord:
            # The usual way is a task that waits for the chord, and its message is captured.
            return apply_chord(header_result_args, body, **kwargs)
        backend.ensure_chords_allowed()
        capture.call(BackendCall(_CHORD, (header_result_args, body), kwargs))
        return None

    def put_off_set_chord_size(group_id: str, chord_size: int) -> Any:
        assert set_chord_size is not None
        capture = here()
        if capture is None or getattr(set_chord_size, "__func__", None) is Backend.set_chord_size:
            return set_chord_size(group_id, chord_size)
        capture.call(BackendCall(_SIZE, (group_id, chord_size)))
        return None

    backend.on_task_call = quiet_on_task_call
    backend.apply_chord = put_off_apply_chord
    if set_chord_size is not None:
        backend.set_chord_size = put_off_set_chord_size
    backend.durable_attended = True
