"""What a worker's main process asks of its recovery service, with one request per connection: cancel or fail an
execution.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery_durable.errors import DurableError, UnknownExecution, WrongState
from celery_durable.runtime.lifeline import connect
from celery_durable.runtime.proxies import behind

from .handlers import handle

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "Control",
    "DirectControl",
    "SocketControl",
    "control_of",
    "set_control",
]

logger = logging.getLogger(__name__)

#: Longest wait of the parent for the service, in seconds: its event loop is blocked meanwhile.
_PATIENCE: Final = 3.0
#: The same if the service was too slow before.
_GLANCE: Final = 0.05


class Control(Protocol):
    """What can be asked of the journal from a worker's main process."""

    def cancel(self, execution_id: str, reason: str) -> None:
        """End an execution that was revoked; one that has ended, or is unknown, stays as it is."""

    def disown(self, promise: str, reason: str) -> None:
        """A child task that is not durable was revoked: notify its parent."""

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        """End an execution as failed; ``error`` names the exception and ``args`` are its arguments."""

    def count(self, execution_id: str) -> None:
        """A time limit ends the process of a body whose execution is to continue: this counts as a death of the
        execution's owner.
        """


class DirectControl:
    """Writes to the journal from this process: in pools whose bodies run in it, and outside workers."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def cancel(self, execution_id: str, reason: str) -> None:
        self._do("cancel", id=execution_id, reason=reason)

    def disown(self, promise: str, reason: str) -> None:
        self._do("disown", id=promise, reason=reason)

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        self._do("fail", id=execution_id, reason=reason, error=error, args=list(args))

    def count(self, execution_id: str) -> None:
        """Do nothing: a body that is interrupted here keeps its lease, and the owner that takes it over counts this."""

    def _do(self, op: str, **fields: Any) -> None:
        try:
            handle(self._app, {"op": op, **fields})
        except (UnknownExecution, WrongState) as error:
            logger.debug("%s: %s", op, error)
        except DurableError as error:
            logger.error("execution %s could not be ended (%s): %s", fields["id"], op, error)


class SocketControl:
    """Asks the service process. The worker's event loop is blocked meanwhile, so it waits only while answers come in
    time; later requests are sent in order, some with every :meth:`repeat`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        #: Requests that have not been answered, oldest first.
        self._unsaid: deque[dict[str, Any]] = deque()
        #: The connection on which the first of these was sent, and its answer is expected.
        self._line: socket.socket | None = None
        self._heard = b""
        #: Held by the thread that sends; nobody waits for it. Without an event loop, timers run in another thread.
        self._speaking = threading.Lock()

    def cancel(self, execution_id: str, reason: str) -> None:
        self._say({"op": "cancel", "id": execution_id, "reason": reason})

    def disown(self, promise: str, reason: str) -> None:
        self._say({"op": "disown", "id": promise, "reason": reason})

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        self._say({"op": "fail", "id": execution_id, "reason": reason, "error": error, "args": list(args)})

    def count(self, execution_id: str) -> None:
        self._say({"op": "count", "id": execution_id})

    def repeat(self) -> None:
        """Send the requests that are left, as long as answers come at once."""
        if self._unsaid:
            self._progress(_GLANCE)

    def _say(self, message: dict[str, Any]) -> None:
        self._unsaid.append(message)
        if len(self._unsaid) == 1:
            self._progress(_PATIENCE)
            if self._unsaid:
                logger.warning("%s of execution %s is handled later", message["op"], message["id"])

    def _progress(self, patience: float) -> None:
        if not self._speaking.acquire(blocking=False):
            return  # the thread that sends will send this request too
        try:
            self._speak(patience)
        finally:
            self._speaking.release()

    def _speak(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while self._unsaid:
            try:
                answered = self._answered(max(deadline - time.monotonic(), 0.0))
            except (OSError, ValueError, KeyError) as error:
                logger.debug("the recovery service cannot be asked: %s", error)
                self._hang_up()
                return
            if answered is None:
                return  # the answer is still to come
            if not answered:
                # The journal did not answer: try again later.
                self._hang_up()
                return
            self._unsaid.popleft()
        self._hang_up()

    def _answered(self, patience: float) -> bool | None:
        """Whether the first request is done; None if no answer came within this many seconds."""
        if self._line is None:
            self._line, self._heard = connect(self._address, _GLANCE), b""
            self._line.sendall(json.dumps(self._unsaid[0]).encode() + b"\n")
        self._line.settimeout(max(patience, 0.001))
        while b"\n" not in self._heard:
            try:
                data = self._line.recv(4096)
            except (TimeoutError, BlockingIOError):
                return None
            if not data:
                raise ConnectionResetError("the service has gone")
            self._heard += data
        answer, self._heard = json.loads(self._heard), b""
        self._hang_up()
        return bool(answer["ok"])

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


_controls: weakref.WeakKeyDictionary[Celery, Control] = weakref.WeakKeyDictionary()


def set_control(app: Celery, control: Control | None) -> None:
    """Set what :func:`control_of` returns in this process."""
    if control is None:
        _controls.pop(app, None)
    else:
        _controls[app] = control


def control_of(app: Celery) -> Control:
    """The control of this process."""
    app = behind(app)
    return _controls.get(app) or DirectControl(app)
