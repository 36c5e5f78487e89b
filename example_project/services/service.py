"""What the services share: JSON over ``http.server``, and the ways in which a real service misbehaves."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from .ledger import Ledger


class BadRequest(Exception):
    """The request makes no sense; answered with its status and message."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Faults:
    """How a service misbehaves. The defaults are a perfect service."""

    #: Seconds that a request takes before anything is done: least and most.
    latency: tuple[float, float] = (0.0, 0.0)
    #: Share of requests that are refused with 503 before anything is done.
    down: float = 0.0
    #: Share of requests whose answer is late although the work is done, and by how many seconds: least and most.
    slow: float = 0.0
    slowness: tuple[float, float] = (0.5, 1.0)
    seed: int | None = None
    _rng: random.Random = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def draw(self) -> tuple[float, bool, float]:
        """For one request: seconds before the work, whether to refuse, seconds between the work and the answer."""
        with self._lock:
            before, refuse = self._rng.uniform(*self.latency), self._rng.random() < self.down
            late = self._rng.uniform(*self.slowness) if self._rng.random() < self.slow else 0.0
        return before, refuse, late


@dataclass(frozen=True)
class Reply:
    """What a service answers, and the word for it in the ledger's list of requests."""

    status: int
    #: JSON; or a page, as text.
    body: dict[str, Any] | str
    outcome: str
    #: Headers besides those that every answer has.
    headers: dict[str, str] = field(default_factory=dict)


class Service:
    """One service: its ledger, its faults, its answers."""

    #: Name on the command line and in the logs.
    name: ClassVar[str]
    #: The paths that take new entries. At the first one, entries can also be looked for.
    paths: ClassVar[tuple[str, ...]]
    #: The table of entries.
    schema: ClassVar[str]
    #: Reads all entries, oldest first.
    query: ClassVar[str]
    default_port: ClassVar[int]

    def __init__(self, ledger_file: Path | str, faults: Faults | None = None) -> None:
        self.ledger = Ledger(ledger_file, self.schema)
        self.faults = faults or Faults()

    def enter(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Do the work of one request and commit it to the ledger. ``key`` is its ``Idempotency-Key``."""
        raise NotImplementedError

    def post(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Answer a POST, in the way that the faults allow."""
        if path not in self.paths:
            return Reply(404, {"error": f"{self.name} takes POST {' and '.join(self.paths)} only"}, "not found")
        before, refuse, late = self.faults.draw()
        time.sleep(before)
        if refuse:
            reply = Reply(503, {"error": "try again later; nothing was done"}, "refused")
        else:
            try:
                reply = self.enter(path, body, key)
            except BadRequest as error:
                reply = Reply(error.status, {"error": str(error)}, "rejected")
        self.ledger.note(f"POST {path}", body.get("reference"), reply.status, reply.outcome)
        time.sleep(late)
        return reply

    def get(self, path: str, query: dict[str, str]) -> Reply:
        """Answer a GET: ``/ledger`` is everything, the first path its entries, by ``reference`` if given."""
        entries = self.ledger.rows(self.query)
        if path == "/ledger":
            return Reply(200, {"entries": entries, "requests": self.ledger.outcomes()}, "read")
        if path != self.paths[0]:
            return Reply(404, {"error": f"{self.name} has GET /ledger and GET {self.paths[0]} only"}, "not found")
        wanted = query.get("reference")
        return Reply(200, {"entries": [e for e in entries if wanted in (None, e["reference"])]}, "read")


def required(body: dict[str, Any], name: str, kind: type) -> Any:
    """A field of the request, or :class:`BadRequest`."""
    value = body.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequest(f"{name!r} must be given, as {kind.__name__}")
    return value


class Server(ThreadingHTTPServer):
    """An HTTP server for one service; port 0 takes any free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: Service, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.service = service

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Turns HTTP into calls of the service and back."""

    server: Server

    def do_GET(self) -> None:
        """Answer a GET."""
        url = urlsplit(self.path)
        self._answer(self.server.service.get(url.path, dict(parse_qsl(url.query))))

    def do_POST(self) -> None:
        """Answer a POST."""
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body: Any
        try:
            if self.headers.get_content_type() == "application/x-www-form-urlencoded":
                body = dict(parse_qsl(text.decode()))
            else:
                body = json.loads(text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return self._answer(Reply(400, {"error": "the body must be a JSON object"}, "rejected"))
        self._answer(self.server.service.post(urlsplit(self.path).path, body, self.headers.get("Idempotency-Key")))

    def _answer(self, reply: Reply) -> None:
        body, kind = reply.body, "text/html; charset=utf-8"
        if not isinstance(body, str):
            body, kind = json.dumps(body), "application/json"
        payload = body.encode()
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", kind)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:
            # The worker that asked was killed. What it asked for is done and in the ledger all the same.
            self.log_message("nobody was left to hear the answer %s", reply.body)
