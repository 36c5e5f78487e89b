"""Behind a PgBouncer in transaction mode, which hands the server's sessions round: nothing is left in one that a later
statement counts on, and nothing is expected there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from celery_durable import DurableContext, JournalUnavailable, LeaseLost, StepDescriptor
from celery_durable.store import Database, migrations
from celery_durable.store.drivers import libpq as direct
from celery_durable.store.drivers.postgresql import PostgreSQL
from celery_durable.store.journal import NotStorable
from celery_durable.store.pooler import Pooler
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab
from tests.support.servers import OwnPgBouncer

from .test_server_errors import TRANSACTIONS, Place, Stores

behind_a_pooler = pytest.mark.databases("pgbouncer")
LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_isolation")


def shown(connection: Connection) -> list[Any]:
    return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in LIMITS]


@pytest.fixture
def opened(database: JournalDatabase) -> Iterator[Callable[..., Database]]:
    """Opens the database, perhaps as another setting has it."""
    made: list[Database] = []
    migrations.upgrade(database.url)

    def open_(setting: str = "auto", url: str = database.url, **options: Any) -> Database:
        made.append(Database(url, **{"timeout": 30, "pooler": Pooler(setting), **options}))
        return made[-1]

    yield open_
    for one in made:
        one.dispose()


# -- recognised -------------------------------------------------------------------------------------------------


@behind_a_pooler
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("tolerates", ["extra_float_digits", "extra_float_digits,options"], ids=["refuses", "drops"])
def test_it_is_recognised(
    database: JournalDatabase, opened: Callable[..., Database], tolerates: str, pooled: bool
) -> None:
    """One that refuses settings at the start of a session, and one that takes and drops them."""
    pooler = OwnPgBouncer(database.behind.url, tolerates=tolerates)
    try:
        pooler.start()
        url = make_url(pooler.url).set(database=make_url(database.url).database).render_as_string(False)
        journal = opened(url=url, pooled=pooled)
        limits = ["30s", "30s", "read committed"]
        assert journal.write(shown) == limits
        assert journal.pooler.between
        assert journal.write(shown, durable=False) == journal.read(shown) == limits
        journal.dispose()
    finally:
        pooler.remove()


@pytest.mark.databases("postgresql")
def test_where_there_is_none_nothing_is_said_in_each_transaction(opened: Callable[..., Database]) -> None:
    journal = opened()
    said: list[str] = []
    event.listen(journal.engine, "before_cursor_execute", lambda c, cursor, statement, *_: said.append(statement))
    assert journal.write(shown) == journal.read(shown) == ["30s", "30s", "read committed"]
    assert not journal.pooler.between
    assert not any("SET LOCAL" in statement for statement in said)


@pytest.mark.databases("postgresql", "pgbouncer")
def test_it_may_be_set(opened: Callable[..., Database]) -> None:
    """Where it cannot be recognised; it costs a word for each transaction."""
    journal = opened("transaction")
    assert journal.write(shown) == journal.read(shown) == ["30s", "30s", "read committed"]
    assert journal.read(lambda c: 0, single=lambda usual: int(usual.known("a", "b"))) == 0


@behind_a_pooler
def test_who_says_that_there_is_none_is_believed(opened: Callable[..., Database]) -> None:
    journal = opened("none", timeout=1)
    with pytest.raises(JournalUnavailable, match="unsupported startup parameter"):
        journal.read(lambda c: 0)


@pytest.mark.databases("postgresql")
def test_one_that_nobody_knew_of_is_found_by_what_it_does(opened: Callable[..., Database]) -> None:
    """A session that is somebody else's all at once: as when a pooler is put in while processes live."""
    journal = opened()
    assert journal.read(lambda c: 0, single=lambda usual: int(usual.known("a", "b"))) == 0
    usual = journal._driver
    assert isinstance(usual, PostgreSQL)
    for line in usual._direct._idle:
        line.driver.execute("DEALLOCATE ALL")
    assert journal.read(lambda c: 7, single=lambda usual: int(usual.known("a", "b")) or None) == 7
    assert journal.pooler.between
    assert journal.read(lambda c: 0, single=lambda usual: int(usual.known("a", "b"))) == 0


# -- what is said -----------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(database: JournalDatabase) -> Iterator[str]:
    """The address of one that has a single session of the server's for everybody."""
    migrations.upgrade(database.behind.url)
    pooler = OwnPgBouncer(database.behind.url, size=1)
    pooler.start()
    yield make_url(pooler.url).set(database=make_url(database.url).database).render_as_string(False)
    pooler.remove()


@behind_a_pooler
@pytest.mark.parametrize("greenlets", [False, True], ids=["threads", "greenlets"])
def test_nothing_is_left_in_a_session(
    database: JournalDatabase, narrow: str, monkeypatch: pytest.MonkeyPatch, greenlets: bool
) -> None:
    """Every transaction of the library's, and what the next one finds in the same session."""
    monkeypatch.setattr(direct, "is_patched", lambda: greenlets)
    given = JournalDatabase("postgresql", narrow, "")
    place = Place(given)
    for operate in TRANSACTIONS.values():
        # Some come after the end of what they are for, and say all the same what they have to say.
        with contextlib.suppress(NotStorable, exc.IntegrityError, LeaseLost):
            operate(place.calm, place.held)
    assert place.lent == 0
    place.close()
    with sa.create_engine(narrow, poolclass=sa.pool.NullPool).connect() as connection:
        assert shown(connection)[:2] == ["0", "0"]
        kept = {"pg_prepared_statements": 0, "pg_cursors": 0, "pg_listening_channels()": 0}
        for view in kept:
            kept[view] = connection.exec_driver_sql(f"SELECT count(*) FROM {view} AS v").scalar_one()
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert [*kept.values(), connection.exec_driver_sql(locks).scalar_one()] == [0, 0, 0, 0]
    given.dispose()


@behind_a_pooler
@pytest.mark.parametrize("greenlets", [False, True], ids=["threads", "greenlets"])
def test_nothing_is_said_after_the_end_of_a_transaction(
    opened: Callable[..., Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, greenlets: bool
) -> None:
    """To a pooler that was another transaction, which never ended: it kept a session of the server's for it."""
    monkeypatch.setattr(direct, "is_patched", lambda: greenlets)
    journal = opened()
    asked = (
        lambda: journal.read(lambda c: 0, single=lambda usual: usual.known("a", "b")),
        lambda: Stores.over(journal).journal.segment(1, 1, "", 0, 9),
    )
    for ask in asked:
        assert not ask()
    usual = journal._driver
    assert isinstance(usual, PostgreSQL)
    [line] = usual._direct._idle
    with (tmp_path / "said").open("w+b") as file:
        line.driver.pgconn.trace(file.fileno())
        for ask in asked:
            ask()
        line.driver.pgconn.untrace()
        file.seek(0)
        # Time, direction, length, kind. The text of a statement may go on in lines of its own.
        said = [row.split(b"\t")[3] for row in file if re.search(rb"\tF\t\d+\t", row)]
    assert said == [b"Query"] * 2


@behind_a_pooler
def test_many_share_few_sessions(database: JournalDatabase, opened: Callable[..., Database]) -> None:
    """Several processes, as several databases stand for here, each with statements that it says again and again."""
    journals = [opened(), opened(pooled=False), opened("transaction")]

    def ask(number: int) -> int:
        journal = journals[number % len(journals)]
        assert journal.read(lambda c: False, single=lambda usual: usual.known("a", str(number))) is False
        journal.write(lambda c: c.execute(sa.text("SELECT :n + 1"), {"n": number}).scalar())
        return number

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, range(300))) == list(range(300))


@behind_a_pooler
def test_a_server_that_waits_for_a_lock_is_bounded_there(
    database: JournalDatabase, opened: Callable[..., Database]
) -> None:
    """Else sessions that nobody listens to would wait, and the pooler would have none left."""
    journal = opened(timeout=0.5)
    journal.read(lambda c: 0)
    usual = journal._driver
    assert usual is not None
    with database.behind.engine().connect() as other:
        other.exec_driver_sql("LOCK TABLE durable_execution IN ACCESS EXCLUSIVE MODE")
        for ask in (
            lambda: journal.write(lambda c: c.exec_driver_sql("SELECT 1 FROM durable_execution").all()),
            lambda: journal.read(lambda c: 0, single=lambda usual: usual.known("a", "b") or None),
        ):
            with contextlib.suppress(JournalUnavailable):
                ask()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        for _ in range(300):
            if other.exec_driver_sql(waiting).scalar() == 0:
                break
            threading.Event().wait(0.1)
        else:
            raise AssertionError("a session of the server's waits for ever")
    for _ in range(100):
        with contextlib.suppress(JournalUnavailable):
            assert journal.read(lambda c: 0, single=lambda usual: int(usual.known("a", "b"))) == 0
            break


@behind_a_pooler
def test_it_may_restart(database: JournalDatabase, opened: Callable[..., Database]) -> None:
    journal = opened()
    assert database.pooler is not None
    for _ in range(3):
        assert journal.read(lambda c: 0, single=lambda usual: int(usual.known("a", "b"))) == 0
        assert journal.write(lambda c: 1) == 1
        database.pooler.stop()
        threading.Timer(0.3, database.pooler.start).start()
    assert journal.write(lambda c: 2) == 2


# -- transactional steps ----------------------------------------------------------------------------------------


def isolated(connection: Connection) -> list[Any]:
    connection.exec_driver_sql("INSERT INTO own VALUES ('there')")
    return shown(connection)


async def isolated_async(connection: AsyncConnection) -> list[Any]:
    await connection.exec_driver_sql("INSERT INTO own VALUES ('there')")
    return await connection.run_sync(shown)


@behind_a_pooler
@pytest.mark.parametrize("isolation", [None, "SERIALIZABLE"])
@pytest.mark.parametrize("operation", [isolated, isolated_async], ids=["plain", "async"])
def test_a_transactional_step(
    database: JournalDatabase, make_lab: Callable[..., Lab], operation: Any, isolation: Any
) -> None:
    with database.engine(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("CREATE TABLE own (value VARCHAR(20))")
    lab = make_lab(durable_transaction_timeout=40.0)
    how = StepDescriptor.transactional("isolated", isolation=isolation)

    def body(context: DurableContext) -> Any:
        if operation is isolated:
            return [context.transaction(how, isolated) for _ in range(8)][-1]

        async def steps() -> Any:
            return [await context.transaction(how, isolated_async) for _ in range(8)][-1]

        return asyncio.run(steps())

    assert lab.run(body) == ["40s", "40s", (isolation or "READ COMMITTED").lower()]
    assert lab.runtime.database.pooler.between
    with database.engine().connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM own").scalar() == 8
