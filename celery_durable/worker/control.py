"""How a worker's processes speak with its recovery service.

Under prefork the service is a process of its own, for the parent must not hold database connections or threads while it
forks. It listens on a local socket. Two kinds of peers connect to it:

* the parent, with one request per connection: cancel or fail an execution;
* each pool process, with a *lifeline*: it says who it is, and the end of the connection says that it is dead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import DurableError, UnknownExecution, WrongState

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "Control",
    "DirectControl",
    "Lifeline",
    "SocketControl",
    "address_of",
    "attend",
    "control_of",
    "listen",
    "peer_is_us",
    "set_control",
    "tell_due",
]

logger = logging.getLogger(__name__)

#: Linux has names for sockets that need no file.
_ABSTRACT: Final = sys.platform.startswith("linux")
#: Longest wait of the parent for the service, in seconds: its event loop stands still meanwhile.
_PATIENCE: Final = 3.0


class Control(Protocol):
    """What can be asked of the journal from a worker's main process."""

    def cancel(self, execution_id: str, reason: str) -> None:
        """End an execution that was revoked; one that has ended, or is unknown, stays as it is."""

    def disown(self, promise: str, reason: str) -> None:
        """A child task that is not durable was revoked: tell its parent."""

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        """End an execution as failed; ``error`` names the exception and ``args`` are its arguments."""


def address_of(pid: int) -> str:
    """Where the service of the worker whose main process is ``pid`` listens."""
    if _ABSTRACT:
        return f"\0celery-durable-{os.getuid()}-{pid}"
    name = hashlib.sha256(f"{os.getuid()}-{pid}".encode()).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"celery-durable-{name}.sock")


def listen(address: str) -> socket.socket:
    """The service's socket."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if not address.startswith("\0"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
    server.bind(address)
    if not address.startswith("\0"):
        os.chmod(address, 0o600)
    server.listen(128)
    return server


def peer_is_us(connection: socket.socket) -> bool:
    """True when the other side runs as our user; an abstract socket has no permissions."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())


def _connect(address: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


class DirectControl:
    """Does it here: in pools whose bodies run in the main process, and outside workers."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def cancel(self, execution_id: str, reason: str) -> None:
        self._do("cancel", id=execution_id, reason=reason)

    def disown(self, promise: str, reason: str) -> None:
        self._do("disown", id=promise, reason=reason)

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        self._do("fail", id=execution_id, reason=reason, error=error, args=list(args))

    def _do(self, op: str, **fields: Any) -> None:
        from .handlers import handle

        try:
            handle(self._app, {"op": op, **fields})
        except (UnknownExecution, WrongState) as error:
            logger.debug("%s: %s", op, error)
        except DurableError as error:
            logger.error("execution %s could not be ended (%s): %s", fields["id"], op, error)


class SocketControl:
    """Asks the service process, and tries again later what it could not be asked."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._unsaid: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def cancel(self, execution_id: str, reason: str) -> None:
        self._say({"op": "cancel", "id": execution_id, "reason": reason})

    def disown(self, promise: str, reason: str) -> None:
        self._say({"op": "disown", "id": promise, "reason": reason})

    def fail(self, execution_id: str, reason: str, error: str, *args: Any) -> None:
        self._say({"op": "fail", "id": execution_id, "reason": reason, "error": error, "args": list(args)})

    def repeat(self) -> None:
        """Say what could not be said before."""
        with self._lock:
            messages, self._unsaid = self._unsaid, []
        for message in messages:
            self._say(message)

    def _say(self, message: dict[str, Any]) -> None:
        try:
            with _connect(self._address, _PATIENCE) as connection:
                connection.sendall(json.dumps(message).encode() + b"\n")
                answer = connection.makefile("rb").readline()
            if json.loads(answer)["ok"]:
                return
            reason = "the journal did not answer"
        except (OSError, ValueError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
        logger.warning("%s of execution %s is tried again: %s", message["op"], message["id"], reason)
        with self._lock:
            self._unsaid.append(message)


class Lifeline:
    """The connection by whose end the service learns that this process is dead.

    :param owner: what the owner ids of this process begin with.
    """

    def __init__(self, address: str, owner: str) -> None:
        self._address = address
        self._owner = owner
        self._connection: socket.socket | None = None

    @property
    def held(self) -> bool:
        """True once connected; the other side may have gone since."""
        return self._connection is not None

    def hold(self) -> None:
        """Connect, unless connected. Without a service there is nothing to hold on to, and leases lapse in time."""
        if self._connection is not None and self._alive():
            return
        try:
            self._connection = _connect(self._address, 0.5)
            self._connection.sendall(json.dumps({"op": "hello", "owner": self._owner}).encode() + b"\n")
            self._connection.setblocking(False)
        except OSError:
            self._connection = None

    def tell_due(self, seconds: float) -> None:
        """Something is due in so many seconds: the service is to look by then."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(json.dumps({"op": "due", "in": seconds}).encode() + b"\n")

    def _alive(self) -> bool:
        assert self._connection is not None
        try:
            return self._connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def release(self) -> None:
        """This process ends in order and holds no lease."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(b'{"op": "bye"}\n')
                self._connection.close()
            self._connection = None


class Attentive(Protocol):
    """A recovery service in a thread of this process."""

    app: Celery

    def look_within(self, seconds: float) -> None:
        """Look for what is due in so many seconds at the latest."""


_services: weakref.WeakSet[Attentive] = weakref.WeakSet()


def attend(service: Attentive) -> None:
    """:func:`tell_due` tells this service."""
    _services.add(service)


def tell_due(app: Celery, seconds: float) -> None:
    """Something of the app is due in so many seconds."""
    for service in list(_services):
        if service.app is app:
            service.look_within(seconds)


_controls: weakref.WeakKeyDictionary[Celery, Control] = weakref.WeakKeyDictionary()


def set_control(app: Celery, control: Control | None) -> None:
    """What :func:`control_of` answers in this process."""
    if control is None:
        _controls.pop(app, None)
    else:
        _controls[app] = control


def control_of(app: Celery) -> Control:
    """The control of this process."""
    app = app._get_current_object() if hasattr(app, "_get_current_object") else app
    return _controls.get(app) or DirectControl(app)
