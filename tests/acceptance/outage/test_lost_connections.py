"""Connections end in the middle of what they are used for; the database lives on and has committed, or has not."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable.store import Database, migrations
from tests.support.databases import JournalDatabase
from tests.support.line import line
from tests.support.wait import eventually

from .arena import Arena

pytestmark = [pytest.mark.databases("postgresql", "mysql"), pytest.mark.brokers("redis")]

#: The connections to the database of the test, but for the one that asks.
VICTIMS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
#: Every so many answers one is lost. To connect takes some too, more on MySQL.
PERIOD = {"postgresql": 13, "mysql": 29}
#: What a worker says where a lost answer becomes an error that nobody thought of.
UNEXPECTED = ["raised unexpected", "the heartbeat failed", "flush timer failed", "IntegrityError"]
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}


def test_connections_that_are_killed_again_and_again_are_not_noticed(arena: Arena) -> None:
    arena.start(concurrency=4)
    names = arena.send_chains(6, 15)
    kind, killed = arena.database.kind, 0
    admin = arena.database.engine(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for effects in range(10, 80, 7):
            arena.await_fired(effects)
            for victim in connection.execute(sa.text(VICTIMS[kind])).scalars().all():
                try:
                    connection.execute(sa.text(KILL[kind].format(int(victim))))
                    killed += 1
                except sa.exc.DBAPIError:
                    pass  # it left by itself in the meantime
    arena.check_chains(names, 15)
    assert killed >= 20


@pytest.mark.databases("mysql")
def test_a_connection_that_is_lost_while_it_is_given_back_is_no_error(
    database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy gives it its isolation level back, by a statement whose errors it does not translate."""
    migrations.upgrade(database.url)
    journal = Database(database.url)
    admin = database.engine(isolation_level="AUTOCOMMIT")
    dialect = journal.engine.dialect
    rollback = dialect.do_rollback
    killed = []

    def rollback_and_die(connection: Any) -> None:
        rollback(connection)
        if not killed:
            killed.append(connection.thread_id())
            with admin.connect() as killer:
                killer.execute(sa.text(KILL["mysql"].format(killed[0])))

    def answer(connection: sa.Connection) -> int:
        return int(connection.execute(sa.text("SELECT 42")).scalar_one())

    assert journal.read(answer) == 42
    monkeypatch.setattr(dialect, "do_rollback", rollback_and_die)
    assert journal.read(answer) == 42
    assert killed
    journal.dispose()


def test_a_commit_whose_answer_is_lost_is_not_done_twice(arena: Arena) -> None:
    """Now and then an answer of the server gets lost with its connection, whatever it was an answer to."""
    with line(arena.database.url) as lossy:
        worker = arena.start(via=lossy.url, concurrency=4)
        names = arena.send_chains(6, 15)
        arena.await_fired(4)
        lossy.swallow(PERIOD[arena.database.kind])
        eventually(lambda: lossy.swallowed >= 12, 60)
        lossy.swallow(0)
        arena.check_chains(names, 15)
    # Nothing of that was an error to anybody.
    said = worker.log()
    assert [text for text in UNEXPECTED if text in said] == []
