"""What a worker's main process has the journal told: it waits for one answer at most, and nothing is forgotten."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_durable import JournalUnavailable, UnknownExecution
from celery_durable.worker import control, errands
from celery_durable.worker.control import SocketControl
from celery_durable.worker.errands import QueuedControl
from tests.support.wait import eventually

TEN = [str(number) for number in range(10)]


class Listener:
    """Stands for the recovery service."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.address)
        self.server.listen(128)
        self.server.settimeout(0.0)
        self.peers: list[socket.socket] = []

    def accept(self) -> int:
        """How many connections have come so far."""
        try:
            while True:
                self.peers.append(self.server.accept()[0])
        except BlockingIOError:
            return len(self.peers)

    def close(self) -> None:
        for one in (self.server, *self.peers):
            one.close()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(control, "_PATIENCE", 0.2)
    listener = Listener(tmp_path / "s")
    yield listener
    listener.close()


def serve(listener: Listener, answers: list[bool]) -> list[str]:
    """Answer what comes, in a thread of its own: as told first, and well after that."""
    heard: list[str] = []
    listener.server.settimeout(None)

    def run() -> None:
        while True:
            try:
                peer, _ = listener.server.accept()
                line = peer.makefile().readline()
                if line:
                    ok = answers.pop(0) if answers else True
                    if ok:
                        heard.append(json.loads(line)["id"])
                    peer.sendall(json.dumps({"ok": ok}).encode() + b"\n")
                peer.close()
            except OSError:
                return

    threading.Thread(target=run, daemon=True).start()
    return heard


def test_only_the_first_of_many_is_waited_for(listener: Listener):
    asking = SocketControl(listener.address)
    for one in TEN:
        asking.cancel(one, "it was revoked")
        assert listener.accept() == 1
    # Nor does anybody wait for long afterwards: the same answer is still to come.
    asking.repeat()
    assert listener.accept() == 1
    for peer in listener.peers:
        peer.close()
    heard = serve(listener, [])
    eventually(lambda: asking.repeat() or len(heard) == len(TEN))
    assert heard == TEN


def test_what_the_journal_did_not_take_is_said_again_in_its_turn(listener: Listener):
    heard = serve(listener, [False, False, True, False])
    asking = SocketControl(listener.address)
    for one in TEN:
        asking.fail(one, "the hard time limit was exceeded", "TimeLimitExceeded", 1.0)
    eventually(lambda: asking.repeat() or len(heard) == len(TEN))
    assert heard == TEN
    asking.cancel("more", "it was revoked")
    eventually(lambda: heard[-1] == "more")


def test_without_a_service_it_is_kept(tmp_path: Path):
    asking = SocketControl(str(tmp_path / "s"))
    for one in TEN:
        asking.cancel(one, "it was revoked")
    asking.repeat()
    listener = Listener(tmp_path / "s")
    heard = serve(listener, [])
    eventually(lambda: asking.repeat() or len(heard) == len(TEN))
    assert heard == TEN
    listener.close()


def test_a_pool_without_processes_has_a_thread_that_tries_until_it_is_answered(monkeypatch: pytest.MonkeyPatch):
    back, done, tries = threading.Event(), list[str](), list[str]()

    def handle(app: Celery, message: dict[str, Any]) -> None:
        tries.append(message["id"])
        if not back.is_set():
            raise JournalUnavailable("the database is away.")
        done.append(message["id"])
        if message["id"] == "3":
            raise UnknownExecution("3")

    monkeypatch.setattr(errands, "handle", handle)
    monkeypatch.setattr(errands, "_PAUSE", 0.01)
    asking = QueuedControl(Celery("errands", set_as_current=False))
    for one in TEN:
        asking.cancel(one, "it was revoked")
    eventually(lambda: len(tries) >= 3)
    assert set(tries) == {"0"}, "the others come after it"
    back.set()
    eventually(lambda: len(done) == len(TEN))
    assert done == TEN
    asking.stop()
