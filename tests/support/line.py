"""A line between the workers and a server, on which a test lets things go wrong."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

from sqlalchemy.engine import make_url

__all__ = ["Line", "line"]

_PORTS = {"postgresql": 5432, "mysql": 3306, "amqp": 5672}


class Line:
    """Passes on what connects to :attr:`url`.

    :param target: the URL of a database or a broker.
    """

    def __init__(self, target: str) -> None:
        url = make_url(target)
        self._target = (url.host or "127.0.0.1", url.port or _PORTS[url.get_backend_name()])
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = url.set(host="127.0.0.1", port=self._listener.getsockname()[1]).render_as_string(False)
        self._wires: set[socket.socket] = set()
        self._open = threading.Event()
        self._open.set()
        self._period = 0
        self._answers = itertools.count(1)
        #: Connections that ended with an answer of the server's that its client never got.
        self.swallowed = 0
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self, period: int) -> None:
        """Every so many answers, counted over all connections: the connection ends, and the answer is lost.

        :param period: 0: no more.
        """
        self._period = period

    def hang(self) -> None:
        """Pass nothing on, and let nobody know: new connections are taken, and hear nothing."""
        self._open.clear()

    def flow(self) -> None:
        """Pass on what was held back, and all that comes."""
        self._open.set()

    def cut(self) -> int:
        """End every connection as it stands; new ones are passed on.

        :returns: how many ends there were.
        """
        wires = list(self._wires)
        for wire in wires:
            self._end(wire)
        return len(wires)

    def close(self) -> None:
        """End everything."""
        self.closed = True
        self._listener.close()
        self.flow()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._wires.add(client)
        self._open.wait()
        with contextlib.suppress(OSError):
            server = socket.create_connection(self._target)
            self._wires.add(server)
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            self._pass_on(server, client, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                if is_answer and self._period and next(self._answers) % self._period == 0:
                    self.swallowed += 1
                    break
                sink.sendall(data)
        self._end(source)
        self._end(sink)

    def _end(self, wire: socket.socket) -> None:
        self._wires.discard(wire)
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)
        wire.close()


@contextlib.contextmanager
def line(target: str) -> Iterator[Line]:
    """A line for one test."""
    laid = Line(target)
    try:
        yield laid
    finally:
        laid.close()
