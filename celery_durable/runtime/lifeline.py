"""How the processes of a worker find its recovery service, and how it learns that one has died.

Under prefork the service is a process of its own, because the parent must not hold database connections or threads
while it forks. It listens on a local socket. Two kinds of peers connect to it:

* the parent, with one request per connection (:mod:`celery_durable.worker.control`);
* each pool process, with a *lifeline*: it says who it is, and the end of the connection says that it is dead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import struct
import sys
import tempfile
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Lifeline", "address_of", "attend", "connect", "listen", "peer_is_us", "tell_due"]

#: Linux has names for sockets that need no file.
_ABSTRACT: Final = sys.platform.startswith("linux")
#: Made once for each worker, and inherited by the processes that it forks: nobody else can listen there before it does,
#: and two workers that have one pid, in two namespaces for pids, do not meet.
_ONCE: Final = secrets.token_hex(16)


def address_of(pid: int) -> str:
    """Where the service of the worker whose main process is ``pid`` listens; to be asked in one of its processes."""
    if _ABSTRACT:
        return f"\0celery-durable-{os.getuid()}-{pid}-{_ONCE}"
    name = hashlib.sha256(f"{os.getuid()}-{pid}-{_ONCE}".encode()).hexdigest()[:16]
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


def connect(address: str, timeout: float) -> socket.socket:
    """A connection to a service of ours.

    :param timeout: for each word, in seconds.
    :raises OSError: when nobody listens there, or somebody else.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(address)
        if not peer_is_us(connection):
            raise ConnectionRefusedError("somebody else listens there")
    except BaseException:
        connection.close()
        raise
    return connection


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
            self._connection = connect(self._address, 0.5)
            self._connection.sendall(json.dumps({"op": "hello", "owner": self._owner}).encode() + b"\n")
            self._connection.setblocking(False)
        except OSError:
            self._connection = None

    def tell_due(self, seconds: float) -> None:
        """Something is due in this many seconds: the service has to look by then."""
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

    def abandon(self) -> None:
        """This process is a fork of the one that holds on: the end of that one must be seen though this one lives."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
        """Look for what is due in this many seconds at the latest."""


_services: weakref.WeakSet[Attentive] = weakref.WeakSet()


def attend(service: Attentive) -> None:
    """:func:`tell_due` notifies this service."""
    _services.add(service)


def tell_due(app: Celery, seconds: float) -> None:
    """Something of the app is due in this many seconds."""
    for service in list(_services):
        if service.app is app:
            service.look_within(seconds)
