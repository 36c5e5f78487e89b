"""An error of a statement of the library's is never the user's: whatever the server says, it is `JournalUnavailable`,
nothing of the transaction is left, and neither a connection nor a descriptor is lost over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from celery_durable import DurableContext, Intent, JournalUnavailable, OnAmbiguous, State, StepDescriptor
from celery_durable.store import Database, Journal, Ownership, Promises, RecoveryStore, migrations
from celery_durable.store.drivers import libpq as direct
from celery_durable.store.drivers.base import Driver, LastCommit
from celery_durable.store.drivers.postgresql import PostgreSQL
from celery_durable.store.first_commit import new_row
from celery_durable.store.records import (
    Batch,
    Birth,
    EffectCode,
    Entry,
    EntryKind,
    Fence,
    NewPromise,
    Opened,
    OpenRequest,
    PayloadKind,
    Published,
    StoredPayload,
)
from celery_durable.store.statements import bound
from celery_durable.store.tables import executions, journal, new_pk
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab, Parked
from tests.support.saboteur import ERRORS, refusing

LEASE_MS = 600_000
SOMETHING = StoredPayload(0, b"something")
RESULT = Entry("", 0, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "result", b"f" * 32, payload=SOMETHING)
SECOND = RESULT._replace(position=1)
ASKED = Entry("", 2, 0, EntryKind.PROMISE, None, "asked", b"f" * 32, promise=NewPromise("p" * 32, "asked"))
INTENT = Entry("", 3, 0, EntryKind.INTENT, EffectCode.EXACTLY_ONCE_GUARDED, "charge", b"f" * 32, b"k" * 32)
ABORT = Entry("#aborted", 0, 0, EntryKind.ABORTED, None, "aborted", payload=SOMETHING)
FOLDED = Entry("", 0, 30_000, EntryKind.CHECKPOINT, None, "folded", payload=SOMETHING)
#: So long is an operation tried, in seconds.
HURRY = 0.15

on_servers = pytest.mark.databases("postgresql", "mysql")


def request(id: str, **options: Any) -> OpenRequest:  # noqa: A002
    return OpenRequest(id, "task", f"{id}:1", 0, lambda: SOMETHING, **options)


#: Another worker's, for an execution whose owner has been silent for too long.
HEIR = OpenRequest("lapsed", "task", "heir:1", 0, lambda: SOMETHING, recoverable=False)


class Stores(NamedTuple):
    """What the library asks of its database, over one that soon loses patience."""

    database: Database
    journal: Journal
    ownership: Ownership
    recovery: RecoveryStore
    promises: Promises

    @classmethod
    def over(cls, database: Database) -> Stores:
        return cls(
            database,
            Journal(database, lease_ms=LEASE_MS),
            Ownership(database, namespace="errors", lease_ms=LEASE_MS, max_attempts=10),
            RecoveryStore(database, namespace="errors", lease_ms=LEASE_MS, max_attempts=10),
            Promises(database),
        )


def batch(fence: Fence, *entries: Entry) -> Batch:
    return Batch(fence, 1, entries, len(entries))


#: Every transaction of an owner's, and of recovery's; ``held`` is an execution that is running.
TRANSACTIONS: dict[str, Callable[[Stores, Fence], Any]] = {
    "open at once": lambda s, f: s.ownership.open(request("another")),
    "open again": lambda s, f: s.ownership.open(HEIR),
    "begin": lambda s, f: s.journal.append([_birth(RESULT)]),
    "append": lambda s, f: s.journal.append([batch(f, RESULT)]),
    "append two": lambda s, f: s.journal.append([batch(f, RESULT, SECOND)]),
    "append a promise": lambda s, f: s.journal.append([batch(f, ASKED)]),
    "append for several": lambda s, f: s.journal.append([batch(f, RESULT), _birth(RESULT)]),
    "append once more": lambda s, f: s.journal.append([batch(f, RESULT)._replace(again=True)]),
    "claim a key": lambda s, f: s.journal.append_global(batch(f), INTENT),
    "verify": lambda s, f: s.journal.verify(f),
    "fold": lambda s, f: s.journal.fold(batch(f, FOLDED), 0),
    "renew": lambda s, f: s.ownership.renew([f]),
    "finish": lambda s, f: s.ownership.finish(batch(f, RESULT), "held:1", State.COMPLETED, SOMETHING),
    "finish at once": lambda s, f: s.ownership.finish(_birth(RESULT), "new:1", State.COMPLETED, SOMETHING),
    "suspend": lambda s, f: s.ownership.suspend(batch(f), "held:1", delay_ms=9, retries=0, envelope=SOMETHING),
    "release": lambda s, f: s.ownership.release(batch(f), "held:1"),
    "park": lambda s, f: s.ownership.park(batch(f), "held:1", State.AMBIGUOUS, SOMETHING),
    "restart": lambda s, f: s.ownership.restart(batch(f), ABORT),
    "tell Celery": lambda s, f: s.ownership.mark_dispatched([_FINISHED_PK]),
    "publish": lambda s, f: s.recovery.publish([Published("published", "task", 0, SOMETHING)]),
    "claim what is due": lambda s, f: s.recovery.claim(10),
    "forsake": lambda s, f: s.recovery.forsake("held:"),
    "restore a promise": lambda s, f: s.promises.restore(f.pk, [NewPromise("q" * 32, "asked")]),
}  # fmt: skip

_FINISHED_PK = 1


def _birth(*entries: Entry) -> Batch:
    return batch(Fence(new_pk(), 1), *entries)._replace(birth=Birth("errors", request("new")))


class Place:
    """A database with an execution that runs, one whose lease has run out, and one that has ended."""

    def __init__(self, given: JournalDatabase) -> None:
        self.given = given
        if given.kind != "sqlite":
            migrations.upgrade(given.url)
        self.calm = Stores.over(Database(given.url, timeout=30))
        opened = self.calm.ownership.open(request("held"))
        assert isinstance(opened, Opened)
        self.held = opened.fence
        lapsed = self.calm.ownership.open(request("lapsed"))
        assert isinstance(lapsed, Opened)
        ended = self.calm.ownership.open(request("ended"))
        assert isinstance(ended, Opened)
        self.calm.ownership.finish(batch(ended.fence), "ended:1", State.COMPLETED, SOMETHING)
        self.change("lapsed", lease_until=1, wake_at=1)
        self.change("ended", pk=_FINISHED_PK)
        self.hurried = Stores.over(Database(given.url, timeout=HURRY))
        self.look()

    def change(self, name: str, **values: Any) -> None:
        change = sa.update(executions).where(executions.c.id == name).values(values)
        assert self.calm.database.write(lambda c: c.execute(change).rowcount) == 1

    def look(self) -> None:
        """Make the connections of the one in a hurry; it may be too slow for that at first."""
        for _ in range(100):
            with contextlib.suppress(JournalUnavailable):
                self.hurried.database.read(lambda c: c.execute(sa.select(1)))
                return
        raise AssertionError("the database does not answer")

    def contents(self) -> list[Any]:
        """All that an operation could have changed."""
        return self.calm.database.read(
            lambda c: [
                [tuple(row) for row in c.execute(sa.select(table).order_by(*table.primary_key))]
                for table in (executions, journal)
            ]
        )

    @property
    def lent(self) -> int:
        """Connections that nobody has given back; those that are kept for the driver are none."""
        database = self.hurried.database
        lent = database.engine.pool.checkedout()  # type: ignore[attr-defined]
        if database._autocommit is not None:
            usual = database._driver
            kept = len(usual._direct._idle) if isinstance(usual, PostgreSQL) else 0
            lent += database._autocommit.pool.checkedout() - kept  # type: ignore[attr-defined]
        return int(lent)

    def close(self) -> None:
        self.calm.database.dispose()
        self.hurried.database.dispose()


@pytest.fixture
def place(database: JournalDatabase) -> Iterator[Place]:
    made = Place(database)
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- every transaction, every error -----------------------------------------------------------------------------


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("trouble", ERRORS["postgresql"])
def test_what_postgresql_says_is_never_the_user_s_error(place: Place, trouble: str) -> None:
    check_all(place, ERRORS["postgresql"][trouble])


@pytest.mark.databases("mysql")
@pytest.mark.parametrize("trouble", ERRORS["mysql"])
def test_what_mysql_says_is_never_the_user_s_error(place: Place, trouble: str) -> None:
    check_all(place, ERRORS["mysql"][trouble])


def check_all(place: Place, code: str | int) -> None:
    before, open_before = place.contents(), descriptors()
    with refusing(place.given, code):
        for name, operate in TRANSACTIONS.items():
            with pytest.raises(JournalUnavailable, match=r"refuses a statement|did not commit within"):
                pytest.fail(f"{name}: {operate(place.hurried, place.held)!r}")
            assert place.lent == 0, name
        check_usual(place)
    # What is kept open for later was open before, too.
    assert descriptors() <= open_before + 2
    assert place.contents() == before
    check_works(place)


def check_works(place: Place) -> None:
    """The same connections are good for everything."""
    for name in ("verify", "append once more", "renew"):
        for _ in range(100):  # as long as it takes: the machine may be slow
            with contextlib.suppress(JournalUnavailable):
                TRANSACTIONS[name](place.hurried, place.held)
                break
        else:
            raise AssertionError(name)


# -- the usual ones, as the driver is told them -----------------------------------------------------------------


def usual_ones(place: Place) -> dict[str, Callable[[Driver], Any]]:
    fence, birth = place.held, _birth(RESULT)
    born = birth.birth
    assert born is not None
    row = new_row(birth.fence.pk, "errors", born.request, LEASE_MS, 1)
    ends = bound({"pk": fence.pk, "held": fence.epoch, "steps": 1, "wake": 1, "state": State.COMPLETED.value})
    last = LastCommit(batch(fence, RESULT), ("state",), False, ends, None, PayloadKind.OUTCOME, SOMETHING)
    return {
        "append": lambda usual: usual.append(batch(fence, RESULT), LEASE_MS),
        "append two": lambda usual: usual.append(batch(fence, RESULT, SECOND), LEASE_MS),
        "begin": lambda usual: usual.begin(birth, row, SOMETHING),
        "open": lambda usual: usual.open_new(row, SOMETHING),
        "settle": lambda usual: usual.settle(last),
    }


def check_usual(place: Place) -> None:
    usual = place.hurried.database._driver
    if usual is None:
        return
    for name, tell in usual_ones(place).items():
        # The second where the machine is so slow that the server's answer comes too late.
        with pytest.raises((exc.DBAPIError, exc.TimeoutError)):
            pytest.fail(f"{name}: {tell(usual)!r}")
        assert place.lent == 0, name


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("greenlets", [False, True], ids=["libpq", "cursor"])
def test_a_read_that_is_given_up_leaves_nothing_behind(
    place: Place, monkeypatch: pytest.MonkeyPatch, greenlets: bool
) -> None:
    """Somebody holds the tables, as ``ALTER TABLE`` does; under gevent the driver's cursor is asked, and not libpq."""
    monkeypatch.setattr(direct, "is_patched", lambda: greenlets)
    place.hurried.database.dispose()
    engine = place.given.engine()
    with engine.connect() as other:
        name = other.engine.url.database
        other.exec_driver_sql(f"ALTER DATABASE {name} SET lock_timeout = '20ms'")
        other.commit()
        place.look()
        open_before = descriptors()
        other.exec_driver_sql("LOCK TABLE durable_execution, durable_journal IN ACCESS EXCLUSIVE MODE")
        usual = place.hurried.database._driver
        assert usual is not None
        segment = {"pk": place.held.pk, "generation": 1, "scope": "", "position": 0, "rows": 9}
        for _ in range(20):
            for ask in (lambda: usual.known("errors", "held"), lambda: usual.segment(segment)):
                with pytest.raises((exc.DBAPIError, exc.TimeoutError)):
                    ask()
        assert place.lent == 0
        with pytest.raises(JournalUnavailable):
            place.hurried.journal.segment(place.held.pk, 1, "", 0, 9)
        assert descriptors() <= open_before + 2
    assert usual.known("errors", "held")
    assert usual.segment(segment) == []


@pytest.mark.databases("postgresql")
def test_a_statement_that_is_cancelled_costs_no_connection(place: Place) -> None:
    """For real, as a DBA or a pooler does it; the connection that was in hand is used again."""
    usual = place.calm.database._driver
    assert isinstance(usual, PostgreSQL)
    assert usual.known("errors", "held")
    [kept] = usual._direct._idle
    with place.given.engine().connect() as other:
        other.exec_driver_sql("LOCK TABLE durable_execution IN ACCESS EXCLUSIVE MODE")
        canceller = cancelling(place.given, kept.driver.info.backend_pid)
        with canceller, pytest.raises(exc.OperationalError, match="cancel"):
            usual.known("errors", "held")
    assert list(usual._direct._idle) == [kept]
    assert usual.known("errors", "held")


@contextlib.contextmanager
def cancelling(given: JournalDatabase, pid: int) -> Iterator[None]:
    """Cancel what a session of the server waits for, as soon as it waits."""
    done = threading.Event()

    def cancel() -> None:
        with given.engine(isolation_level="AUTOCOMMIT").connect() as connection:
            while not done.wait(0.02):
                waiting = f"FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
                connection.exec_driver_sql(f"SELECT pg_cancel_backend(pid) {waiting}")

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.databases("postgresql", "mysql")
def test_a_server_that_was_made_read_only_is_not_held_on_to(place: Place) -> None:
    """After a failover the old connections lead to a replica, and new ones to the server that writes."""
    usual = place.hurried.database._driver
    with place.hurried.database.engine.connect() as connection:
        before = connection.connection.dbapi_connection
    if usual is not None:
        usual.known("errors", "held")
    code = ERRORS[place.given.kind]["read-only"]
    with refusing(place.given, code), pytest.raises(JournalUnavailable):
        place.hurried.journal.append([batch(place.held, RESULT)])
    place.look()
    with place.hurried.database.engine.connect() as connection:
        assert connection.connection.dbapi_connection is not before


# -- SQLite -----------------------------------------------------------------------------------------------------


#: What is done to a connection of SQLite's.
SQLITE: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "read-only": lambda c: c.execute("PRAGMA query_only = 1"),
    "interrupted": lambda c: c.set_progress_handler(lambda: 1, 1),
    "permission denied": lambda c: c.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action in _CHANGES else sqlite3.SQLITE_OK
    ),
}
_CHANGES = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("trouble", SQLITE)
def test_what_sqlite_says_is_never_the_user_s_error(place: Place, trouble: str) -> None:
    database = place.hurried.database
    assert database._driver is not None
    broken: list[sqlite3.Connection] = []

    def on_connect(connection: sqlite3.Connection, record: Any) -> None:
        SQLITE[trouble](connection)
        broken.append(connection)

    engines = [database.engine, database._driver._engine]  # type: ignore[attr-defined]
    before = place.contents()
    database.dispose()
    for engine in engines:
        event.listen(engine, "connect", on_connect)
    for name, operate in TRANSACTIONS.items():
        with pytest.raises(JournalUnavailable):
            pytest.fail(f"{name}: {operate(place.hurried, place.held)!r}")
        assert place.lent == 0
    for tell in usual_ones(place).values():
        with pytest.raises(exc.DBAPIError):
            tell(database._driver)
    for engine in engines:
        event.remove(engine, "connect", on_connect)
    assert broken
    database.dispose()
    assert place.contents() == before
    check_works(place)


# -- bodies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def open_lab(make_lab: Callable[..., Lab], database: JournalDatabase) -> Lab:
    return make_lab(durable_ack_timeout=0.3, durable_lease_timeout=600.0)


PAY = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)


@on_servers
def test_a_body_is_not_told_that_a_payment_failed_when_its_record_did(database: JournalDatabase, open_lab: Lab) -> None:
    """What looked like the payment's error made bodies pay by another way as well."""
    lab, told = open_lab, []
    code = ERRORS[database.kind]["disk full"]
    trouble = contextlib.ExitStack()

    def pay() -> str:
        lab.ledger.fire("pay")
        trouble.enter_context(refusing(database, code))
        return "paid"

    def body(context: DurableContext) -> str:
        try:
            return str(context.step(PAY, pay))
        except JournalUnavailable:
            raise
        except Exception as error:
            told.append(error)
            return str(context.step("another way", lambda: lab.ledger.fire("bank")))

    with trouble, pytest.raises(JournalUnavailable):
        lab.run(body)
    assert told == []
    assert lab.ledger.names() == ["pay"]
    assert lab.state() is State.RUNNING
    # The record was kept, and goes in when it can; else the policy is asked.
    for _ in range(100):
        lab.lose_lease()
        with contextlib.suppress(Parked):  # that prolongs the lease
            assert lab.run(lambda context: context.step(PAY, lambda: "asked again")) in ("paid", "asked again")
            break
    else:
        raise AssertionError("it does not go on")
    assert lab.ledger.names() == ["pay"]


def write(connection: Connection, value: str) -> str:
    connection.exec_driver_sql(f"INSERT INTO own (value) VALUES ('{value}')")
    return value


async def write_async(connection: AsyncConnection, value: str) -> str:
    await connection.exec_driver_sql(f"INSERT INTO own (value) VALUES ('{value}')")
    return value


def own_rows(database: JournalDatabase) -> list[str]:
    with database.engine().connect() as connection:
        return list(connection.exec_driver_sql("SELECT value FROM own").scalars())


@on_servers
@pytest.mark.parametrize("operation", [write, write_async], ids=["plain", "async"])
def test_the_entry_of_a_transactional_step_is_ours_and_its_own_statements_are_the_user_s(
    database: JournalDatabase, open_lab: Lab, operation: Any
) -> None:
    lab = open_lab
    with database.engine(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("CREATE TABLE own (value VARCHAR(20) PRIMARY KEY)")

    def body(value: str) -> Callable[[DurableContext], Any]:
        if operation is write:
            return lambda context: context.transaction("write", write, value)

        async def asynchronous(context: DurableContext) -> Any:
            return await context.transaction("write", write_async, value)

        return lambda context: asyncio.run(asynchronous(context))

    # The journal cannot be written: nothing of the step is left, and the body is told nothing of it.
    for number, trouble in enumerate(("disk full", "permission denied", "read-only", "shutdown")):
        with refusing(database, ERRORS[database.kind][trouble]), pytest.raises(JournalUnavailable):
            lab.run(body("ours"), id=f"ours-{number}")
    assert own_rows(database) == []
    assert lab.run(body("ours"), id="ours") == "ours"
    # The user's own statement is refused: that is the step's error, and the body's to handle.
    with pytest.raises(exc.SQLAlchemyError, match=r"(?i)unique|duplicate"):
        lab.run(body("ours"), id="theirs")
    assert lab.state("theirs") is State.FAILED
    assert own_rows(database) == ["ours"]
