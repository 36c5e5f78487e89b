"""A server that answers, and refuses: a full disk, a failover to a replica. Bodies hear nothing of it, their messages
come back, and nothing is paid twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.support.databases import JournalDatabase
from tests.support.saboteur import ERRORS, refusing

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

POSTPONED = "cannot continue without its journal; its message is delivered again"


@contextlib.contextmanager
def read_only(database: JournalDatabase) -> Iterator[None]:
    """Every session that begins from now on may only read, and those that there are have ended."""
    name = sa.make_url(database.url).database
    options = {"connect_args": {"options": "-c default_transaction_read_only=off"}, "isolation_level": "AUTOCOMMIT"}
    others = f"FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    with database.engine(**options).connect() as connection:
        for setting in ("SET default_transaction_read_only = on", "RESET default_transaction_read_only"):
            connection.exec_driver_sql(f"ALTER DATABASE {name} {setting}")
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {others}")
            if "on" in setting.split():
                yield


def check(arena: Arena, trouble: contextlib.AbstractContextManager[None]) -> None:
    worker = arena.start(concurrency=4)
    arena.send("held", "held", "release")
    names = arena.send_chains(3, 10)
    arena.await_fired(6)
    with trouble:
        # One has paid when its server begins to refuse; others are about to.
        arena.open_gate("release")
        arena.await_said(worker, POSTPONED, 4)
    arena.check_chains(names, 10)
    assert arena.result("held").get(timeout=60) == "released"
    assert [effect["name"] for effect in arena.ledger.entries(execution="held")] == ["before", "held", "after"]
    assert "AttributeError" not in worker.log()


@pytest.mark.databases("postgresql", "mysql")
def test_a_full_disk(arena: Arena) -> None:
    check(arena, refusing(arena.database, ERRORS[arena.database.kind]["disk full"]))


@pytest.mark.databases("postgresql")
def test_a_server_that_was_made_read_only(arena: Arena) -> None:
    check(arena, read_only(arena.database))
