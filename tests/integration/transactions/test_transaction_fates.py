"""Transactional steps that others get in the way of, or whose database falls silent: done once all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from celery_durable import DurableContext, JournalUnavailable, StepDescriptor, TransactionTimeout
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab
from tests.support.line import Line

servers = pytest.mark.databases("postgresql", "mysql")

accounts = sa.Table(
    "shop_account",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False),
)
#: What operations have written; a second run would show.
notes = sa.Table(
    "shop_note", accounts.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("what", sa.String(40))
)

#: The databases' own words for a conflict, without the wait for a real one.
CONFLICTS = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'conflict'",
}


@pytest.fixture
def open_lab(database: JournalDatabase, make_lab: Callable[..., Lab]) -> Callable[..., Lab]:
    """A lab with two accounts."""
    engine = database.engine()
    accounts.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(accounts), [{"id": 1, "balance": 100}, {"id": 2, "balance": 100}])
    return make_lab


def note(connection: Connection, what: str) -> None:
    connection.execute(sa.insert(notes).values(what=what))


def noted(database: JournalDatabase) -> list[str]:
    with database.engine().connect() as connection:
        return list(connection.execute(sa.select(notes.c.what).order_by(notes.c.id)).scalars())


def add(connection: Connection, account: int, amount: int) -> None:
    change = sa.update(accounts).where(accounts.c.id == account).values(balance=accounts.c.balance + amount)
    connection.execute(change)


def balances(database: JournalDatabase) -> list[int]:
    with database.engine().connect() as connection:
        return list(connection.execute(sa.select(accounts.c.balance).order_by(accounts.c.id)).scalars())


# -- conflicts --------------------------------------------------------------------------------------------------


@pytest.mark.databases("postgresql")
def test_a_serialization_failure_has_the_operation_run_again(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    """Somebody else commits what this transaction has read, and reads what it writes."""
    lab = open_lab()
    runs = []

    def withdraw(connection: Connection) -> int:
        runs.append(1)
        total = connection.execute(sa.select(sa.func.sum(accounts.c.balance))).scalar_one()
        if len(runs) == 1:
            with database.engine(isolation_level="SERIALIZABLE").begin() as other:
                other.execute(sa.select(sa.func.sum(accounts.c.balance))).scalar_one()
                add(other, 2, -150)
        if total >= 150:
            add(connection, 1, -150)
        note(connection, "withdrawn")
        return int(total)

    careful = StepDescriptor.transactional("withdraw", isolation="SERIALIZABLE")
    assert lab.run(lambda context: context.transaction(careful, withdraw)) == 50
    assert len(runs) == 2
    assert balances(database) == [100, -50]
    assert noted(database) == ["withdrawn"]
    assert lab.entries() == ["0 RESULT withdraw"]


@servers
def test_a_dead_lock_has_one_of_the_two_run_again(database: JournalDatabase, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab()
    both = threading.Barrier(2)
    runs: list[str] = []

    def transfer(connection: Connection, name: str, first: int, second: int) -> str:
        runs.append(name)
        add(connection, first, -1)
        if runs.count(name) == 1:
            both.wait(30)
        add(connection, second, 1)
        note(connection, name)
        return name

    def body(context: DurableContext) -> list[str]:
        with context.parallel() as branches:
            one = branches.submit(context.transaction, "there", transfer, "there", 1, 2)
            two = branches.submit(context.transaction, "back", transfer, "back", 2, 1)
        return [one.result(), two.result()]

    assert lab.run(body) == ["there", "back"]
    assert len(runs) == 3
    assert balances(database) == [100, 100]
    assert sorted(noted(database)) == ["back", "there"]


@servers
def test_a_conflict_that_stays_is_the_steps_error(database: JournalDatabase, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab()
    runs = []

    def unlucky(connection: Connection) -> None:
        runs.append(1)
        note(connection, "undone")
        connection.exec_driver_sql(CONFLICTS[database.kind])

    def body(context: DurableContext) -> str:
        try:
            context.transaction(StepDescriptor.transactional("unlucky", tries=3), unlucky)
        except OperationalError as error:
            return type(error).__name__
        return "?"

    assert lab.run(body) == "OperationalError"
    assert len(runs) == 3
    assert noted(database) == []
    assert lab.entries() == ["0 ERROR unlucky"]


@servers
def test_somebody_who_is_always_quicker_does_not_fail_it_soon(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    """Of two who take turns without a pause, each loses every other time: five tries are lost by one in thirty."""
    lab = open_lab()
    runs = []

    def unlucky(connection: Connection) -> int:
        runs.append(1)
        if len(runs) < 10:
            connection.exec_driver_sql(CONFLICTS[database.kind])
        return len(runs)

    assert lab.run(lambda context: context.transaction(unlucky)) == 10


@pytest.mark.databases("sqlite")
def test_a_locked_file_is_waited_for(database: JournalDatabase, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(durable_ack_timeout=20.0)
    with database.engine().connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        done = threading.Thread(
            target=lambda: lab.run(lambda context: context.transaction("note", note, "late")), daemon=True
        )
        done.start()
        other.exec_driver_sql("COMMIT")
    done.join(30)
    assert noted(database) == ["late"]


# -- a commit of which nothing is heard -------------------------------------------------------------------------


@servers
@pytest.mark.parametrize("lost", ["before the commit", "with its answer"])
def test_a_connection_that_is_lost(
    database: JournalDatabase,
    wire: Line,
    open_lab: Callable[..., Lab],
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    lab = open_lab(durable_database_url=wire.url, durable_ack_timeout=20.0, durable_lease_timeout=60.0)
    runs = []

    def work(connection: Connection) -> int:
        runs.append(1)
        note(connection, f"run {len(runs)}")
        if len(runs) == 1 and lost == "before the commit":
            wire.cut()
        return len(runs)

    def reached(point: str, *_: str) -> None:
        if point == "transaction.before_commit" and lost == "with its answer" and len(runs) == 1:
            wire.swallow(1)
            threading.Timer(0.5, wire.swallow, (0,)).start()

    monkeypatch.setattr("celery_durable.steps.transactions.drive.reached", reached)
    value = lab.run(lambda context: context.transaction("work", work))
    if lost == "with its answer":
        # It was committed, and that is recognised.
        assert wire.swallowed
        assert (value, runs) == (1, [1])
    else:
        assert (value, runs) == (2, [1, 1])
    assert noted(database) == [f"run {value}"]
    assert lab.entries() == ["0 RESULT work"]


@servers
def test_a_database_that_is_gone_is_no_error_of_the_step(
    database: JournalDatabase, wire: Line, open_lab: Callable[..., Lab]
) -> None:
    lab = open_lab(durable_database_url=wire.url, durable_ack_timeout=0.5, durable_lease_timeout=60.0)

    def work(connection: Connection) -> None:
        note(connection, "lost")
        wire.close()

    def body(context: DurableContext) -> None:
        try:
            context.transaction("work", work)
        except JournalUnavailable:
            context.step("the body cannot go on", lab.operation("on"))

    with pytest.raises(JournalUnavailable):
        lab.run(body)
    assert lab.ledger.names() == []
    assert noted(database) == []


# -- time -------------------------------------------------------------------------------------------------------


def test_an_operation_that_takes_too_long_is_rolled_back(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    lab = open_lab(durable_transaction_timeout=1.0)
    sleep = {"postgresql": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(30)"}.get(database.kind)

    def in_the_database(connection: Connection) -> None:
        note(connection, "too late")
        if sleep is None:
            time.sleep(1.2)
        else:
            connection.exec_driver_sql(sleep)

    def outside(connection: Connection) -> None:
        note(connection, "too late")
        time.sleep(1.2)

    def body(context: DurableContext) -> list[str]:
        codes = []
        for op in (in_the_database, outside):
            try:
                context.transaction(op)
            except TransactionTimeout as error:
                codes.append(error.code)
        return codes

    assert lab.run(body) == ["CD222", "CD222"]
    assert noted(database) == []


@servers
def test_an_operation_may_take_longer_than_a_commit_of_the_journal(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    lab = open_lab(durable_ack_timeout=0.5)
    sleep = {"postgresql": "SELECT pg_sleep(2)", "mysql": "SELECT SLEEP(2)"}[database.kind]

    def slow(connection: Connection) -> None:
        connection.exec_driver_sql(sleep)
        note(connection, "slow")

    lab.run(lambda context: context.transaction(slow))
    assert noted(database) == ["slow"]


@servers
def test_the_locks_of_a_process_that_was_stopped_are_let_go_at_last(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    if database.version.startswith("MySQL"):
        pytest.skip("MySQL has no timeout for transactions that stand still")
    lab = open_lab(durable_transaction_timeout=7.0)
    query = {
        "postgresql": "SELECT current_setting('idle_in_transaction_session_timeout')",
        "mysql": "SELECT CONCAT(@@SESSION.idle_transaction_timeout, 's')",
    }[database.kind]

    def ask(connection: Connection) -> Any:
        return connection.exec_driver_sql(query).scalar()

    async def ask_async(connection: AsyncConnection) -> Any:
        return (await connection.exec_driver_sql(query)).scalar()

    async def body(context: DurableContext) -> list[Any]:
        return [context.transaction(ask), await context.transaction(ask_async)]

    assert lab.run(body) == ["7s", "7s"]


@pytest.mark.databases("mysql")
def test_what_the_url_says_to_the_server_is_still_said(database: JournalDatabase, open_lab: Callable[..., Lab]) -> None:
    url = sa.make_url(database.url).update_query_dict({"init_command": "SET @mine = 5"})
    lab = open_lab(durable_database_url=url.render_as_string(hide_password=False))

    def ask(connection: Connection) -> Any:
        return connection.exec_driver_sql("SELECT @mine").scalar()

    assert lab.run(lambda context: context.transaction(ask)) == 5


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@servers
def test_the_isolation_level_is_that_of_the_step_alone(
    database: JournalDatabase, open_lab: Callable[..., Lab], level: str
) -> None:
    lab = open_lab()

    def ask(connection: Connection) -> str:
        if database.kind == "postgresql":
            return str(connection.exec_driver_sql("SHOW transaction_isolation").scalar()).upper()
        return str(connection.get_isolation_level())

    def body(context: DurableContext) -> list[str]:
        chosen = StepDescriptor.transactional("chosen", isolation=level)  # type: ignore[arg-type]
        return [context.transaction(chosen, ask), context.transaction(ask)]

    assert lab.run(body) == [level, "READ COMMITTED"]


# -- connections that are lost between two steps ------------------------------------------------------------------

#: Ends the connection of somebody else.
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}


def kill(database: JournalDatabase, connection: int) -> None:
    with database.engine(isolation_level="AUTOCOMMIT").connect() as admin:
        admin.exec_driver_sql(KILL[database.kind].format(connection))


@pytest.mark.databases("mysql")
def test_a_connection_that_is_lost_after_the_commit_is_no_error_of_the_step(
    database: JournalDatabase, open_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy gives it its isolation level back, by a statement whose errors it does not translate."""
    lab = open_lab(durable_ack_timeout=2)
    engine = lab.runtime.transactions.plain.engine
    rollback = engine.dialect.do_rollback
    used: list[int] = []
    killed: list[int] = []

    def withdraw(connection: Connection) -> str:
        used.append(connection.connection.thread_id())  # type: ignore[attr-defined]
        note(connection, "withdrawn")
        return "done"

    def rollback_and_die(connection: Any) -> None:
        rollback(connection)
        if used and connection.thread_id() == used[-1] and used[-1] not in killed:
            killed.append(used[-1])
            kill(database, used[-1])

    monkeypatch.setattr(engine.dialect, "do_rollback", rollback_and_die)
    careful = StepDescriptor.transactional("withdraw", isolation="SERIALIZABLE")
    # More often than there are connections to lose.
    steps = 20
    assert lab.run(lambda context: [context.transaction(careful, withdraw) for _ in range(steps)]) == ["done"] * steps
    assert len(killed) == steps
    assert noted(database) == ["withdrawn"] * steps


@servers
def test_a_connection_that_was_lost_in_the_pool_is_no_error_of_the_step(
    database: JournalDatabase, open_lab: Callable[..., Lab]
) -> None:
    lab = open_lab()
    identity = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}[database.kind]

    def withdraw(connection: Connection) -> int:
        note(connection, "withdrawn")
        return int(connection.exec_driver_sql(identity).scalar_one())

    def body(context: DurableContext) -> list[int]:
        careful = StepDescriptor.transactional("withdraw", isolation="SERIALIZABLE")
        first = context.transaction(careful, withdraw)
        kill(database, first)
        return [first, context.transaction(careful, withdraw)]

    first, second = lab.run(body)
    assert first != second
    assert noted(database) == ["withdrawn"] * 2
