"""A server that is frozen, and a network that swallows everything: no error ever comes, and still nobody hangs."""

from __future__ import annotations

import gc
import re
import time

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from celery_durable import JournalUnavailable
from celery_durable.store import Database, migrations
from tests.support.databases import JournalDatabase
from tests.support.line import Line, line
from tests.support.wait import eventually

from .arena import ACK, Arena
from .servers import Fragile, on_each_server

POSTPONED = "cannot continue without its journal; its message is delivered again"
SILENT = f"did not commit within {ACK:g} s (durable_ack_timeout): "


@on_each_server
@pytest.mark.brokers("redis")
def test_a_frozen_server_holds_nobody(fragile: Arena, server: Fragile) -> None:
    worker = fragile.start(concurrency=4)
    fragile.send("held", "held", "release")
    names = fragile.send_chains(5, 12)
    fragile.await_fired(8)
    server.freeze()
    fragile.open_gate("release")
    # Bodies that were in the middle of a commit, and messages that would have to connect.
    fragile.await_said(worker, POSTPONED, 6)
    # Some drivers have a timeout of their own.
    said = {"postgresql": "TimeoutError: the server did not answer", "mysql": "(timed out)"}
    assert re.search(f"{re.escape(SILENT)}.*{re.escape(said[fragile.database.kind])}", worker.log())
    server.thaw()
    fragile.check_chains(names, 12)
    assert fragile.result("held").get(timeout=60) == "released"
    assert [effect["name"] for effect in fragile.ledger.entries(execution="held")] == ["before", "held", "after"]


@on_each_server
@pytest.mark.brokers("redis")
def test_who_was_cut_off_while_another_took_over_can_commit_nothing(fragile: Arena, server: Fragile) -> None:
    """Only this worker's line is dead; the database and another worker live on."""
    with line(fragile.database.url) as dead:
        zombie = fragile.start(via=dead.url, name="zombie")
        fragile.send("one", "cut_off")
        eventually(lambda: fragile.ledger.count("holding"), 60)
        dead.hang()
        fragile.start(name="heir")
        eventually(lambda: fragile.ledger.count("holding") == 2, 60)
        # The zombie's body goes on first, and finds that it can do nothing.
        fragile.open_gate("first")
        fragile.await_said(zombie, POSTPONED)
        assert fragile.ledger.count("after") == 0
        dead.flow()
        fragile.await_said(zombie, "is dropped: another owner runs it")
        fragile.open_gate("second")
        assert fragile.result("one").get(timeout=60) == "by the second"
    assert [entry["name"] for entry in fragile.ledger.entries()] == ["before", "holding", "holding", "after"]
    assert fragile.row("one").attempts == 1


@pytest.mark.databases("mysql")
@pytest.mark.brokers("redis")
def test_a_silent_network_holds_nobody(arena: Arena) -> None:
    """On MySQL too, whose driver has a timeout of its own for every answer."""
    with line(arena.database.url) as quiet:
        worker = arena.start(via=quiet.url, concurrency=2)
        names = arena.send_chains(3, 8)
        arena.await_fired(4)
        quiet.hang()
        arena.await_said(worker, POSTPONED, 3)
        assert SILENT in worker.log()
        quiet.flow()
        arena.check_chains(names, 8)


@pytest.mark.databases("postgresql", "mysql")
def test_a_wait_for_silence_ends_with_its_time_out_and_leaves_nothing(database: JournalDatabase) -> None:
    with line(database.url) as quiet:
        migrations.upgrade(database.url)
        journal = Database(quiet.url, timeout=ACK)
        assert [ask(answer) for ask in (journal.read, journal.write)] == [42, 42]
        descriptors = psutil.Process().num_fds()
        assert {ask(answer) for ask in 20 * [journal.read, journal.write]} == {42}
        assert psutil.Process().num_fds() == descriptors
        before = connections(quiet)
        quiet.hang()
        # On connections that are there, and then on one that would have to be made.
        for ask in (journal.read, journal.write, journal.write):
            began = time.monotonic()
            with pytest.raises(JournalUnavailable) as late:
                ask(answer)
            assert time.monotonic() - began < 20  # not for ever
            assert SILENT in str(late.value)
        quiet.flow()
        assert [ask(answer) for ask in (journal.read, journal.write)] == [42, 42]
        del late  # its traceback holds what could not be made
        gc.collect()
        assert connections(quiet) <= before
        journal.dispose()


@pytest.mark.databases("postgresql", "mysql")
def test_who_falls_silent_in_a_transaction_loses_its_locks(database: JournalDatabase) -> None:
    """A worker that is cut off in the middle of one may hold the row that its heir is waiting for."""
    if database.version.startswith("MySQL"):
        pytest.skip("MySQL has no timeout for transactions that stand still")
    row = sa.Table("row", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("epoch", sa.Integer))
    heir = database.engine()
    row.metadata.create_all(heir)
    with heir.begin() as connection:
        connection.execute(row.insert().values(id=1, epoch=1))
    with line(database.url) as dead:
        journal = Database(dead.url, timeout=ACK)
        with journal.engine.connect() as silent:
            silent.execute(row.update().values(epoch=2))
            dead.hang()
            # The servers' own patience for a lock is endless, or 50 s.
            with heir.begin() as connection:
                connection.execute(row.update().values(epoch=row.c.epoch + 10))
            dead.flow()
            silent.invalidate()
        journal.dispose()
    with heir.connect() as connection:
        assert connection.execute(sa.select(row.c.epoch)).scalar_one() == 11


def connections(quiet: Line) -> int:
    """Connections of this process that lead to the line."""
    port = make_url(quiet.url).port
    return sum(bool(one.raddr) and one.raddr.port == port for one in psutil.Process().net_connections())


def answer(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT 42")).scalar_one())
