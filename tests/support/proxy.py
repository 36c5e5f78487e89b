"""A wire between a process and a server that a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Proxy", "proxy"]


class Proxy:
    """Passes on what connects to :attr:`port`, until :meth:`cut`.

    :param port: of the server, on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._wires: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """End every connection as it stands; new ones are passed on.

        :returns: how many there were.
        """
        wires = list(self._wires)
        for wire in wires:
            self._end(wire)
        return len(wires) // 2

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._wires |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        self._end(source)
        self._end(sink)

    def _end(self, wire: socket.socket) -> None:
        self._wires.discard(wire)
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)
        wire.close()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A proxy for one test."""
    wire = Proxy(port)
    try:
        yield wire
    finally:
        wire.close()
