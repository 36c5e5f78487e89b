"""Somebody else locks the SQLite file for longer than anybody waits."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.engine import make_url

from .arena import ACK, Arena

pytestmark = [pytest.mark.databases("sqlite"), pytest.mark.brokers("redis")]


def test_a_locked_file_holds_nobody(arena: Arena) -> None:
    worker = arena.start(concurrency=2)
    arena.send("held", "held", "release")
    names = arena.send_chains(2, 8)
    arena.await_fired(3)
    arena.await_fired(1, "held")
    with sqlite3.connect(str(make_url(arena.database.url).database), isolation_level=None, timeout=30) as other:
        other.execute("BEGIN EXCLUSIVE")
        arena.open_gate("release")
        arena.await_said(worker, "cannot continue without its journal; its message is delivered again", 3)
        assert f"did not commit within {ACK:g} s (durable_ack_timeout): OperationalError: database is locked" in (
            worker.log()
        )
        fired = len(arena.ledger.entries())
        arena.await_said(worker, "recovery failed, and is tried again", 2)
        assert len(arena.ledger.entries()) == fired
        other.execute("ROLLBACK")
    arena.check_chains(names, 8)
    assert arena.result("held").get(timeout=60) == "released"
    assert [effect["name"] for effect in arena.ledger.entries(execution="held")] == ["before", "held", "after"]
