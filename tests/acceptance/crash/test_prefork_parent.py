"""A prefork parent holds nothing of ours while it forks: no thread, no database connection, no lock of one.

A child that inherits a lock which a thread of its parent held hangs for ever. A few forks in a thousand do.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy.engine import make_url

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.slow, pytest.mark.timeout(600)]

FORKS = 1000


def database_handles(arena: Arena, pid: int) -> list[str]:
    """Files and connections of the journal's database that a process has open."""
    process, url = psutil.Process(pid), make_url(arena.database.url)
    if arena.database.kind == "sqlite":
        return [file.path for file in process.open_files() if file.path.startswith(str(url.database))]
    ports = {url.port or {"postgresql": 5432, "mysql": 3306}[arena.database.kind]}
    sockets = [
        str(socket.raddr) for socket in process.net_connections("tcp") if socket.raddr and socket.raddr.port in ports
    ]
    return sockets + [str(s.raddr) for s in process.net_connections("unix") if "PGSQL" in str(s.raddr)]


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@pytest.mark.databases("postgresql")
def test_a_thousand_forks_under_load_and_none_hangs(arena: Arena):
    worker = arena.worker(concurrency=2, args=("--without-gossip", "--without-mingle", "--max-tasks-per-child", "1"))
    began = time.monotonic()
    ids = [f"tiny-{number}" for number in range(FORKS)]
    for number, execution in enumerate(ids):
        arena.send(execution, "tiny", number)

    seen: set[int] = set()
    while True:
        seen.update(worker.children())
        assert threads(worker.pid) == 1
        assert database_handles(arena, worker.pid) == []
        done = arena.operations.find(states=[State.COMPLETED], limit=2 * FORKS)
        if len(done) == FORKS:
            break
        assert time.monotonic() < began + 500, f"{FORKS - len(done)} executions hang; children {worker.children()}"
        time.sleep(0.5)
    print(f"\n{FORKS} forks on {arena.database.kind}: {time.monotonic() - began:.1f} s")

    assert {row.epoch for row in done} == {1}, "a child hung or died, and another took over"
    assert len({row.owner for row in done}) == FORKS
    assert len({row.owner.rsplit(":", 1)[0] for row in done if row.owner}) == FORKS, "fewer processes than tasks"
    for number in (0, FORKS // 2, FORKS - 1):
        assert arena.result(ids[number]).get(timeout=30) == 2 * number


def test_the_parent_of_a_working_pool_has_no_thread_and_no_database(arena: Arena):
    worker = arena.worker(concurrency=2)
    arena.send("held-1", "held")
    eventually(lambda: arena.ledger.count("holding"))
    # A revoked execution is the one thing that the parent itself has to tell the journal.
    arena.send("held-2", "held")
    eventually(lambda: arena.ledger.count("holding") == 2)
    arena.client.control.revoke("held-2", terminate=True)
    eventually(lambda: arena.row("held-2").state is State.CANCELLED)

    [body] = arena.ledger.entries("holding", execution="held-1")
    assert database_handles(arena, body["pid"]), "the look itself sees nothing"
    assert database_handles(arena, worker.pid) == []
    assert threads(body["pid"]) > 1
    assert threads(worker.pid) == 1
    arena.open_gate("release")
    arena.await_settled(["held-1"])
