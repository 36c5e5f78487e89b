"""An outage while several branches have guarded operations under way: what a process that lives knows is not lost.

Each of them has happened, and only the process knows what the remote side answered. It keeps that, and writes it when
the database is back: nobody is in doubt.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from sqlalchemy.engine import make_url

from tests.support.databases import JournalDatabase
from tests.support.line import line

from .arena import Arena

POSTPONED = "cannot continue without its journal; its message is delivered again"
NUMBER = 4


class Way(NamedTuple):
    """How a worker reaches its database."""

    url: str
    #: From here on nobody does anything there, until the context ends.
    away: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def way(database: JournalDatabase) -> Iterator[Way]:
    if database.kind == "sqlite":
        yield Way(database.url, lambda: locked(str(make_url(database.url).database)))
        return
    with line(database.url) as laid:

        @contextlib.contextmanager
        def away() -> Iterator[None]:
            laid.hang()
            laid.cut()
            yield
            laid.flow()

        yield Way(laid.url, away)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    with sqlite3.connect(path, isolation_level=None, timeout=60) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_branches_know_outlives_an_outage(arena: Arena, pool: str) -> None:
    with way(arena.database) as to_it:
        # Leases outlast the outage: nobody takes over from a process that lives.
        worker = arena.start(via=to_it.url, pool=pool, concurrency=2, durable={"durable_lease_timeout": 60.0})
        arena.send("one", "branches", NUMBER)
        arena.await_fired(NUMBER)
        with to_it.away():
            # The first one finds that the journal is away; the others have their answers after that.
            arena.open_gate("answer 0")
            arena.await_fired(1, "told 0")
            for n in range(1, NUMBER):
                arena.open_gate(f"answer {n}")
            arena.await_said(worker, POSTPONED)
        assert arena.result("one").get(timeout=120) == [f"receipt {n}" for n in range(NUMBER)]
        paid = [name for name in arena.ledger.names() if name.startswith("pay")]
        assert sorted(paid) == [f"pay {n}" for n in range(NUMBER)]
        row = arena.row("one")
        assert (row.state, row.generation, row.attempts) == ("completed", 1, 0)
        assert worker.alive
