"""The connection to the journal: which URLs it takes, how long it tries, and what a fork or a thread gets of it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from celery_durable.errors import ConfigurationError, JournalUnavailable, SchemaError
from celery_durable.store import database as module
from celery_durable.store import migrations
from celery_durable.store.database import Database
from celery_durable.store.tables import now_ms
from celery_durable.store.urls import parse_url

# Python says so since 3.12; that nothing is inherited is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'journal.db'}"


@pytest.fixture
def journal(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.dispose()


def count(connection: sa.Connection) -> Any:
    return connection.exec_driver_sql("SELECT COUNT(*) FROM t").scalar()


def create(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")


def insert(connection: sa.Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (1)")


# -- URLs -------------------------------------------------------------------------------------------------------

NO_URL = (
    "[CD001] durable_database_url: {} is not a database URL. It looks like "
    "'postgresql+psycopg://user:password@host/name' or 'sqlite:///file.db'."
)
NO_DRIVER = (
    "[CD001] durable_database_url: the driver of {!r} is not installed ({}). Install one and name it in the URL: "
    "pip install 'celery-durable[postgresql]' for 'postgresql+psycopg://...', "
    "pip install 'celery-durable[mysql]' for 'mysql+pymysql://...'."
)

ASYNCIO = (
    "[CD001] durable_database_url: {!r} is an asyncio driver. The journal needs a synchronous one, for async tasks "
    "too: 'postgresql+psycopg://...', 'mysql+pymysql://...' or 'sqlite:///file.db'."
)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("journal.db", NO_URL.format("'journal.db'")),
        ("", NO_URL.format("''")),
        ("postgresql+psycopg//shop:secret@db/name", NO_URL.format("'***@db/name'")),
        ("postgresql+psycopg//shop:se@cret@db/name", NO_URL.format("'***@db/name'")),
        # The part after the last colon is no port: perhaps it is the password.
        ("postgresql+psycopg://shop:secret/1@db:name/x", NO_URL.format("'***@db:name/x'")),
        (
            "oracle://shop:secret@db/name",
            "[CD001] durable_database_url: 'oracle' cannot hold a journal; use sqlite, postgresql, mysql or mariadb.",
        ),
        (
            "redis://localhost/0",
            "[CD001] durable_database_url: 'redis' cannot hold a journal; use sqlite, postgresql, mysql or mariadb.",
        ),
        (
            "postgresql+nonsense://shop:secret@db/name",
            NO_DRIVER.format("postgresql+nonsense", "Can't load plugin: sqlalchemy.dialects:postgresql.nonsense"),
        ),
        ("mysql+cymysql://shop:secret@db/name", NO_DRIVER.format("mysql+cymysql", "No module named 'cymysql'")),
        (
            "postgresql+psycopg_async://shop:secret@db/name",
            ASYNCIO.format("postgresql+psycopg_async"),
        ),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_cure(url: str, message: str):
    for use in (parse_url, Database):
        with pytest.raises(ConfigurationError) as caught:
            use(url)
        assert str(caught.value) == message
        # Neither here nor in what a traceback shows above it.
        assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("sqlite://", "sqlite"),
        ("sqlite:///journal.db", "sqlite"),
        ("postgresql+psycopg://shop@db/name", "postgresql"),
        ("mysql+pymysql://shop@db/name", "mysql"),
        ("mariadb+pymysql://shop@db/name", "mysql"),
    ],
)
def test_databases_that_can_hold_a_journal(url: str, dialect: str):
    assert Database(url).dialect == dialect


# -- bounded waiting --------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and on which nobody else can start to."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize(
    ("scheme", "shown", "cause"),
    [
        ("postgresql+psycopg", "postgresql+psycopg://shop:***@127.0.0.1:{}/name", "OperationalError: connection "),
        ("mysql+pymysql", "mysql+pymysql://shop:***@127.0.0.1:{}/name", "OperationalError: (2003, \"Can't connect to "),
    ],
)
@pytest.mark.parametrize("method", ["read", "write"])
def test_a_server_that_cannot_be_reached_is_told_within_the_bound(
    closed_port: int, scheme: str, shown: str, cause: str, method: str
):
    journal = Database(f"{scheme}://shop:secret@127.0.0.1:{closed_port}/name", timeout=0.7)
    began = time.monotonic()
    with pytest.raises(JournalUnavailable) as caught:
        getattr(journal, method)(lambda connection: pytest.fail("nobody is there"))
    assert 0.2 < time.monotonic() - began < 1.5
    start = (
        f"[CD501] the journal's database ({shown.format(closed_port)}) did not commit within 0.7 s "
        f"(durable_ack_timeout): {cause}"
    )
    assert str(caught.value).startswith(start)
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, exc.OperationalError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_call_may_have_a_bound_of_its_own(closed_port: int):
    journal = Database(f"mysql+pymysql://shop@127.0.0.1:{closed_port}/name", timeout=60)
    for run in (journal.write, journal.read):
        began = time.monotonic()
        with pytest.raises(JournalUnavailable, match=r"did not commit within 0\.2 s"):
            run(count, timeout=0.2)
        assert time.monotonic() - began < 2


def test_a_locked_database_is_told_within_the_bound(url: str, journal: Database):
    journal.write(create)
    hasty = Database(url, timeout=0.4)
    hasty.check_schema()

    def hold(connection: sa.Connection) -> None:
        began = time.monotonic()
        with pytest.raises(JournalUnavailable, match=r"\(durable_ack_timeout\): OperationalError: database is locked$"):
            hasty.write(insert)
        assert 0.3 < time.monotonic() - began < 2
        # Reads do not wait for writers.
        assert hasty.read(count) == 0

    journal.write(hold)
    hasty.write(insert)
    assert hasty.read(count) == 1
    hasty.dispose()


def lost(connection_invalidated: bool = False, kind: type[exc.DBAPIError] = exc.OperationalError) -> exc.DBAPIError:
    return kind("COMMIT", None, OSError("gone"), connection_invalidated=connection_invalidated)


PASSING = [
    lost(),
    lost(kind=exc.InterfaceError),
    lost(kind=exc.InternalError),
    exc.TimeoutError("the pool is empty"),
    lost(kind=exc.ProgrammingError, connection_invalidated=True),
]


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("failure", PASSING, ids=lambda failure: type(failure).__name__)
def test_work_that_the_database_dropped_is_tried_again(journal: Database, failure: Exception, method: str):
    journal.write(create)
    tries = []

    def work(connection: sa.Connection) -> Any:
        tries.append(1)
        if method == "write":
            insert(connection)
        if len(tries) < 3:
            raise failure
        return count(connection)

    # What the failed tries had written is gone.
    assert getattr(journal, method)(work) == (1 if method == "write" else 0)
    assert len(tries) == 3


@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize(
    "failure",
    [ValueError("a bug"), lost(kind=exc.DataError), lost(kind=exc.IntegrityError), SchemaError("no tables")],
    ids=lambda failure: type(failure).__name__,
)
def test_what_a_second_try_cannot_cure_is_told_at_once(journal: Database, failure: Exception, method: str):
    tries = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        raise failure

    with pytest.raises(type(failure)) as caught:
        getattr(journal, method)(work)
    assert caught.value is failure
    assert len(tries) == 1


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_refusal_is_told_at_once_and_is_no_error_of_the_user_s(journal: Database, method: str):
    tries = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        raise lost(kind=exc.ProgrammingError)

    with pytest.raises(JournalUnavailable, match="refuses a statement"):
        getattr(journal, method)(work)
    assert len(tries) == 1


def test_work_that_fails_leaves_nothing(journal: Database):
    journal.write(create)

    def work(connection: sa.Connection) -> None:
        insert(connection)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.write(work)
    assert journal.read(count) == 0
    journal.write(insert)
    assert journal.read(count) == 1


# -- the schema -------------------------------------------------------------------------------------------------


def test_the_schema_is_looked_at_once_per_process(journal: Database, monkeypatch: pytest.MonkeyPatch):
    looks = []
    monkeypatch.setattr(migrations, "ensure", lambda engine, create: looks.append((engine, create)))
    for _ in range(3):
        journal.read(lambda connection: None)
        journal.write(lambda connection: None)
        journal.check_schema()
    assert looks == [(journal.engine, True)]


def test_a_server_gets_no_tables_unasked(monkeypatch: pytest.MonkeyPatch):
    looks = []
    monkeypatch.setattr(migrations, "ensure", lambda engine, create: looks.append(create))
    for url in ("postgresql+psycopg://db/name", "mysql+pymysql://db/name", "mariadb+pymysql://db/name"):
        Database(url).check_schema()
    assert looks == [False, False, False]


def test_a_look_that_failed_is_repeated(journal: Database, monkeypatch: pytest.MonkeyPatch):
    real, looks = migrations.ensure, []

    def ensure(engine: sa.Engine, create: bool) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise SchemaError("no tables")
        if len(looks) == 2:
            raise lost()
        real(engine, create)

    monkeypatch.setattr(migrations, "ensure", ensure)
    with pytest.raises(SchemaError):
        journal.read(lambda connection: None)
    journal.read(lambda connection: None)
    assert len(looks) == 3


# -- SQLite -----------------------------------------------------------------------------------------------------


def test_what_sqlite_is_told(url: str):
    journal = Database(url, timeout=3)

    def ask(connection: sa.Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert journal.read(ask) == ["wal", 2, 3000]
    journal.dispose()


@pytest.mark.parametrize("pooled", [True, False])
def test_writers_wait_for_each_other_and_are_never_told_that_it_is_locked(url: str, pooled: bool):
    """A transaction that reads first and writes later, in several writers: each has the write lock from its start."""
    rounds, writers = 40, 4
    journals = [Database(url, timeout=30, pooled=pooled) for _ in range(writers)]
    journals[0].write(lambda connection: connection.exec_driver_sql("CREATE TABLE n (x INTEGER)"))
    journals[0].write(lambda connection: connection.exec_driver_sql("INSERT INTO n VALUES (0)"))
    for journal in journals:
        # After a read the driver must not begin transactions of its own kind.
        journal.read(lambda connection: connection.exec_driver_sql("SELECT x FROM n").scalar())
    tries = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        seen = connection.exec_driver_sql("SELECT x FROM n").scalar_one()
        time.sleep(0.0005)
        connection.exec_driver_sql("UPDATE n SET x = ?", (seen + 1,))

    def write(journal: Database) -> None:
        for _ in range(rounds):
            journal.write(work)

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(write, journals))
    assert journals[0].read(lambda connection: connection.exec_driver_sql("SELECT x FROM n").scalar()) == (
        rounds * writers
    )
    # Nothing was lost and done again behind the scenes.
    assert len(tries) == rounds * writers
    for journal in journals:
        journal.dispose()


def test_a_read_sees_each_commit_at_once(journal: Database, url: str):
    journal.write(create)
    other = Database(url)

    def work(connection: sa.Connection) -> list[Any]:
        seen = [count(connection)]
        other.write(insert)
        return [*seen, count(connection)]

    assert journal.read(work) == [0, 1]
    other.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_an_in_memory_journal_is_one_for_all_threads(url: str):
    journal = Database(url, timeout=30)
    assert journal.in_memory
    journal.write(create)

    tries = []

    def slowly(connection: sa.Connection) -> None:
        tries.append(1)
        time.sleep(0.001)
        insert(connection)

    def work(number: int) -> None:
        journal.write(slowly)
        journal.read(count)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(200)))
    assert journal.read(count) == len(tries) == 200
    # Another one is another one.
    assert Database(url).read(lambda connection: sa.inspect(connection).has_table("t")) is False


def test_a_file_is_not_in_memory(journal: Database):
    assert not journal.in_memory


def test_a_journal_without_a_pool_keeps_no_connection(url: str):
    journal = Database(url, pooled=False)
    journal.write(create)
    assert isinstance(journal.engine.pool, NullPool)


def test_the_clock(journal: Database):
    for run in (journal.read, journal.write):
        told = run(lambda connection: connection.scalar(sa.select(now_ms())))
        assert type(told) is int
        assert abs(told - time.time() * 1000) < 1000


# -- fork -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """The default action of SIGALRM: the process ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` gives in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with time_limit(20):
                said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said, "the child hung or died"
    return json.loads(said)


def test_a_child_makes_an_engine_of_its_own_and_leaves_its_parent_s_alone(journal: Database):
    journal.write(create)
    engine = journal.engine
    with engine.connect() as connection:
        kept = connection.connection.dbapi_connection

    def child() -> list[Any]:
        journal.write(insert)
        with journal.engine.connect() as connection:
            own = connection.connection.dbapi_connection
        # Not closed: that would end the session of the parent, with a server.
        kept.execute("SELECT 1")
        return [journal.engine is engine, own is kept, journal.read(count)]

    assert in_child(child) == [False, False, 1]
    assert journal.engine is engine
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is kept
    assert journal.read(count) == 1


def test_a_child_looks_at_the_schema_itself(journal: Database, monkeypatch: pytest.MonkeyPatch):
    journal.check_schema()
    looks = []
    monkeypatch.setattr(migrations, "ensure", lambda engine, create: looks.append(1))

    def child() -> int:
        journal.check_schema()
        journal.check_schema()
        return len(looks)

    assert in_child(child) == 1


def test_a_child_does_not_dispose_of_its_parent_s_connections(journal: Database):
    journal.write(create)
    with journal.engine.connect() as connection:
        kept = connection.connection.dbapi_connection

    def child() -> Any:
        journal.dispose()
        return kept.execute("SELECT 1").fetchone()

    assert in_child(child) == [1]
    journal.dispose()
    with pytest.raises(Exception, match="closed database"):
        kept.execute("SELECT 1")


def test_a_fork_while_a_thread_makes_an_engine_does_not_hang_the_child(journal: Database, url: str):
    journal.check_schema()
    fresh = Database(url)
    with module._making:
        assert in_child(lambda: journal.read(lambda connection: 1) + fresh.read(lambda connection: 1)) == 2
    assert not module._making.locked()


def test_a_fork_while_a_thread_migrates_does_not_hang_the_child(tmp_path: Path):
    from celery_durable.store.migrations import running

    with running._one_at_a_time:
        assert in_child(lambda: Database(f"sqlite:///{tmp_path / 'new.db'}").read(lambda connection: 1)) == 1


@pytest.mark.parametrize("forked", [False, True])
def test_threads_share_one_engine(url: str, monkeypatch: pytest.MonkeyPatch, forked: bool):
    journal = Database(url)
    if forked:
        assert journal.engine
    real, made = Database._create, []

    def create_slowly(self: Database, **options: Any) -> sa.Engine:
        made.append(1)
        time.sleep(0.2)
        return real(self, **options)

    def race() -> list[int]:
        gate, engines = threading.Barrier(4), []

        def ask() -> None:
            gate.wait(10)
            engines.append(id(journal.engine))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        return [len(made), len(engines), len(set(engines))]

    monkeypatch.setattr(Database, "_create", create_slowly)
    # One for SQLAlchemy, and one whose connections are spoken to directly.
    assert (in_child(race) if forked else race()) == [2, 4, 1]
