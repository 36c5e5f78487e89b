"""Transactional steps of async bodies: plain operations, and those that are coroutine functions."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from celery_durable import (
    ConfigurationError,
    DurableContext,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    TransactionMisused,
    TransactionTimeout,
    current_step,
    step,
    transactional,
)
from tests.support.databases import JournalDatabase
from tests.support.lab import Crash, Lab, Parked
from tests.support.line import Line

from .accounts import Account, Base, balances_in

DRIVERS = {"sqlite": "aiosqlite", "postgresql": "psycopg", "mysql": "asyncmy"}
servers = pytest.mark.databases("postgresql", "mysql")


@pytest.fixture(autouse=True)
def tables(database: JournalDatabase) -> None:
    pytest.importorskip(DRIVERS[database.kind], reason="no driver for asyncio")
    Base.metadata.create_all(database.engine())


def balances(database: JournalDatabase) -> dict[int, int]:
    return balances_in(database.engine())


def open_plainly(session: Session, number: int) -> int:
    session.add(Account(id=number, balance=0))
    return number


async def open_account(session: AsyncSession, number: int, balance: int = 0) -> int:
    session.add(Account(id=number, balance=balance))
    await session.flush()
    await asyncio.sleep(0)
    return number


async def by_core(connection: AsyncConnection, number: int) -> str:
    await connection.execute(sa.insert(Account).values(id=number, balance=1))
    return type(connection).__name__


# -- plain operations -------------------------------------------------------------------------------------------


def test_a_plain_operation_in_an_async_body_and_in_its_branches(lab: Lab, database: JournalDatabase) -> None:
    crashes = [Crash()]

    async def branch(context: DurableContext, number: int) -> int:
        await asyncio.sleep(0)
        return context.transaction(open_plainly, number)

    async def body(context: DurableContext) -> list[int]:
        first = context.transaction(open_plainly, 1)
        async with context.parallel() as branches:
            made = [branches.submit(branch, context, number) for number in (2, 3)]
        if crashes:
            raise crashes.pop()
        return [first, *[one.result() for one in made]]

    lab.crash(body)
    assert lab.run(body) == [1, 2, 3]
    assert balances(database) == {1: 0, 2: 0, 3: 0}
    assert {"0 RESULT open_plainly", "1.0/0 RESULT open_plainly", "1.1/0 RESULT open_plainly"} <= set(lab.entries())


# -- exactly once -----------------------------------------------------------------------------------------------


def test_rows_and_entry_commit_together(lab: Lab, database: JournalDatabase) -> None:
    async def body(context: DurableContext) -> list[Any]:
        return [
            await context.transaction(open_account, 1, balance=5),
            await context.transaction("core", by_core, 2),
            context.transaction(open_plainly, 3),
            context.step("plain", int, "3"),
        ]

    assert lab.run(body) == [1, "AsyncConnection", 3, 3]
    assert balances(database) == {1: 5, 2: 1, 3: 0}
    assert lab.entries() == ["0 RESULT open_account", "1 RESULT core", "2 RESULT open_plainly", "3 RESULT plain"]
    # Again: a replay.
    lab.sql(sa.text("UPDATE durable_execution SET state = 'pending', wake_at = NULL"))
    assert lab.run(body) == [1, "AsyncConnection", 3, 3]
    assert balances(database) == {1: 5, 2: 1, 3: 0}


@pytest.mark.parametrize("point", ["step.after_effect", "transaction.before_commit", "transaction.after_commit"])
def test_a_crash_leaves_both_or_neither(
    lab: Lab, database: JournalDatabase, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    async def body(context: DurableContext) -> Any:
        context.step("before", str, 1)
        return await context.transaction(open_account, 1)

    def die(name: str, *_: str) -> None:
        if name == point:
            raise Crash

    monkeypatch.setattr("celery_durable.steps.transactions.drive.reached", die)
    lab.crash(body)
    monkeypatch.undo()
    committed = point == "transaction.after_commit"
    assert balances(database) == ({1: 0} if committed else {})
    assert ("1 RESULT open_account" in lab.entries()) == committed
    assert lab.run(body) == 1
    assert balances(database) == {1: 0}


def test_an_owner_that_was_fenced_off_commits_no_rows(lab: Lab, database: JournalDatabase) -> None:
    async def body(context: DurableContext) -> None:
        context.step("flush", str)
        context._run.flush()
        lab.sql(sa.text("UPDATE durable_execution SET epoch = epoch + 1"))
        await context.transaction(open_account, 1)

    with pytest.raises(Parked):
        lab.run(body)
    assert balances(database) == {}


def test_branches_and_gathered_steps(lab: Lab, database: JournalDatabase) -> None:
    crashes = [Crash()]

    async def branch(context: DurableContext, number: int) -> int:
        return await context.transaction(open_account, number)

    async def body(context: DurableContext) -> list[int]:
        async with context.parallel() as branches:
            made = [branches.submit(branch, context, number) for number in range(3)]
            made.append(branches.submit(decorated, 3))
        found = await asyncio.gather(*(context.transaction(open_account, number) for number in (4, 5)))
        if crashes:
            raise crashes.pop()
        return [one.result() for one in made] + list(found)

    lab.crash(body)
    assert lab.run(body) == [0, 1, 2, 3, 4, 5]
    assert set(balances(database)) == {0, 1, 2, 3, 4, 5}


def test_a_task_that_is_called_directly(lab: Lab, database: JournalDatabase) -> None:
    async def body(context: DurableContext) -> list[Any]:
        with pytest.raises(ZeroDivisionError):
            await context.transaction("fails", fails, 1)
        return [await context.transaction(open_account, 2), context.transaction(open_plainly, 3)]

    lab._body = body
    assert asyncio.run(lab.job()) == [2, 3]
    assert set(balances(database)) == {2, 3}


# -- errors -----------------------------------------------------------------------------------------------------


async def fails(session: AsyncSession, number: int) -> None:
    await open_account(session, number)
    raise ZeroDivisionError


def test_an_error_rolls_back_and_is_the_steps(lab: Lab, database: JournalDatabase) -> None:
    attempts = []

    async def flaky(connection: AsyncConnection) -> int:
        attempts.append(current_step().attempt)
        await by_core(connection, len(attempts))
        if len(attempts) < 3:
            raise OSError("not yet")
        return 7

    async def body(context: DurableContext) -> list[Any]:
        with pytest.raises(ZeroDivisionError):
            await context.transaction(fails, 1)
        with pytest.raises(IntegrityError):
            await context.transaction("twice", twice)
        retried = StepDescriptor.transactional("flaky", retry=Retry(max_attempts=3, backoff=0.0, on=(OSError,)))
        return [await context.transaction(retried, flaky)]

    async def twice(session: AsyncSession) -> None:
        session.add(Account(id=8, balance=0))
        await session.execute(sa.insert(Account).values(id=8, balance=0))

    assert lab.run(body) == [7]
    assert attempts == [1, 2, 3]
    assert balances(database) == {3: 1}
    assert lab.entries() == [
        "0 ERROR fails", "1 ERROR twice", "2 ATTEMPT flaky", "2 ATTEMPT flaky", "2 RESULT flaky",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
def test_an_operation_must_not_end_its_transaction(lab: Lab, database: JournalDatabase, how: str) -> None:
    async def with_session(session: AsyncSession) -> None:
        await open_account(session, 1)
        await getattr(session, how)()

    async def with_connection(connection: AsyncConnection) -> None:
        await by_core(connection, 1)
        await getattr(connection, how)()

    async def hidden(connection: AsyncConnection) -> None:
        try:
            await with_connection(connection)
        except TransactionMisused:
            pass

    async def body(context: DurableContext) -> Any:
        for op in (with_session, with_connection, hidden):
            with pytest.raises(TransactionMisused, match="must n"):
                await context.transaction(op)
        return await context.transaction(open_account, 2)

    assert lab.run(body) == 2
    assert balances(database) == {2: 0}


def test_savepoints_are_the_operations_own(lab: Lab, database: JournalDatabase) -> None:
    async def careful(session: AsyncSession) -> str:
        await open_account(session, 1)
        try:
            async with session.begin_nested():
                session.add(Account(id=1, balance=9))
        except IntegrityError:
            return "known"
        return "?"

    async def body(context: DurableContext) -> str:
        return await context.transaction(careful)

    assert lab.run(body) == "known"
    assert balances(database) == {1: 0}


# -- others in the way ------------------------------------------------------------------------------------------


async def add(connection: AsyncConnection, number: int, amount: int) -> None:
    change = sa.update(Account).where(Account.id == number).values(balance=Account.balance + amount)
    await connection.execute(change)


@pytest.fixture
def two(database: JournalDatabase) -> None:
    with database.engine().begin() as connection:
        connection.execute(sa.insert(Account), [{"id": 1, "balance": 100}, {"id": 2, "balance": 100}])


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("two")
def test_a_serialization_failure_has_the_operation_run_again(lab: Lab, database: JournalDatabase) -> None:
    """Somebody else commits what this transaction has read, and reads what it writes."""
    runs = []
    total_of = sa.select(sa.func.sum(Account.balance))

    async def withdraw(connection: AsyncConnection) -> int:
        runs.append(1)
        total = (await connection.execute(total_of)).scalar_one()
        if len(runs) == 1:
            with database.engine(isolation_level="SERIALIZABLE").begin() as other:
                other.execute(total_of).scalar_one()
                other.execute(sa.update(Account).where(Account.id == 2).values(balance=-50))
        if total >= 150:
            await add(connection, 1, -150)
        return int(total)

    careful = StepDescriptor.transactional("withdraw", isolation="SERIALIZABLE")

    async def body(context: DurableContext) -> int:
        return await context.transaction(careful, withdraw)

    assert lab.run(body) == 50
    assert len(runs) == 2
    assert balances(database) == {1: 100, 2: -50}


@servers
@pytest.mark.usefixtures("two")
def test_a_dead_lock_between_two_branches_has_one_run_again(lab: Lab, database: JournalDatabase) -> None:
    both = threading.Barrier(2)
    runs: list[str] = []

    async def transfer(connection: AsyncConnection, name: str, first: int, second: int) -> str:
        runs.append(name)
        await add(connection, first, -1)
        if runs.count(name) == 1:
            await asyncio.to_thread(both.wait, 30)
        await add(connection, second, 1)
        return name

    async def body(context: DurableContext) -> list[str]:
        there = context.transaction("there", transfer, "there", 1, 2)
        back = context.transaction("back", transfer, "back", 2, 1)
        return list(await asyncio.gather(there, back))

    assert lab.run(body) == ["there", "back"]
    assert len(runs) == 3
    assert balances(database) == {1: 100, 2: 100}


@pytest.mark.usefixtures("two")
def test_what_holds_up_the_bodys_loop_holds_up_no_transaction(lab: Lab, database: JournalDatabase) -> None:
    """A plain step waits, in the thread of the event loop, for what the transaction has locked."""
    locked = threading.Event()

    async def slow(connection: AsyncConnection) -> None:
        await add(connection, 1, 1)
        locked.set()
        await asyncio.sleep(0.3)

    def quick(connection: Connection) -> None:
        connection.execute(sa.update(Account).where(Account.id == 1).values(balance=Account.balance * 2))

    async def branch(context: DurableContext) -> str:
        await asyncio.to_thread(locked.wait, 30)
        context.transaction(quick)
        pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)
        return context.step(pay, lab.operation("pay", "paid"))

    async def body(context: DurableContext) -> str:
        async with context.parallel() as branches:
            one = branches.submit(context_transaction, context, slow)
            two = branches.submit(branch, context)
        return f"{one.result()} {two.result()}"

    async def context_transaction(context: DurableContext, op: Any) -> Any:
        return await context.transaction(op)

    assert lab.run(body) == "None paid"
    assert balances(database)[1] == 202


def test_a_step_that_is_cancelled_is_rolled_back(lab: Lab, database: JournalDatabase) -> None:
    ends = []

    async def slow(session: AsyncSession) -> None:
        await open_account(session, 1)
        try:
            await asyncio.sleep(30)
        finally:
            ends.append(sys.exc_info()[0])

    async def body(context: DurableContext) -> int:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(context.transaction(slow), 0.3)
        # Its locks are gone too.
        return await context.transaction(open_account, 1)

    assert lab.run(body) == 1
    assert ends == [asyncio.CancelledError]
    assert sorted(lab.entries()) == ["0 ERROR slow", "1 RESULT open_account"]
    assert balances(database) == {1: 0}


def test_an_operation_that_takes_too_long_is_rolled_back(
    database: JournalDatabase, make_lab: Callable[..., Lab]
) -> None:
    lab = make_lab(durable_transaction_timeout=1.0)
    sleep = {"postgresql": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(30)"}.get(database.kind)

    async def in_the_database(connection: AsyncConnection) -> None:
        await by_core(connection, 1)
        await (asyncio.sleep(30) if sleep is None else connection.exec_driver_sql(sleep))

    async def outside(session: AsyncSession) -> None:
        # Another row: MySQL goes on with a statement whose client has gone, and keeps its locks.
        await open_account(session, 2)
        await asyncio.sleep(30)

    async def its_own(session: AsyncSession) -> None:
        await open_account(session, 3)
        raise asyncio.TimeoutError

    async def body(context: DurableContext) -> list[str]:
        codes = []
        for op in (in_the_database, outside):
            try:
                await context.transaction(op)
            except TransactionTimeout as error:
                codes.append(error.code)
        with pytest.raises(asyncio.TimeoutError):
            await context.transaction(its_own)
        return codes

    assert lab.run(body) == ["CD222", "CD222"]
    assert balances(database) == {}


# -- a commit of which nothing is heard -------------------------------------------------------------------------


@servers
@pytest.mark.parametrize("lost", ["before the commit", "with its answer"])
def test_a_connection_that_is_lost(
    database: JournalDatabase,
    wire: Line,
    make_lab: Callable[..., Lab],
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    lab = make_lab(durable_database_url=wire.url, durable_ack_timeout=20.0, durable_lease_timeout=60.0)
    runs = []

    async def work(session: AsyncSession) -> int:
        runs.append(1)
        await open_account(session, len(runs))
        if len(runs) == 1 and lost == "before the commit":
            wire.cut()
        return len(runs)

    def reached(point: str, *_: str) -> None:
        if point == "transaction.before_commit" and lost == "with its answer" and len(runs) == 1:
            wire.swallow(1)
            threading.Timer(0.5, wire.swallow, (0,)).start()

    async def body(context: DurableContext) -> int:
        return await context.transaction(work)

    monkeypatch.setattr("celery_durable.steps.transactions.drive.reached", reached)
    value = lab.run(body)
    if lost == "with its answer":
        # It was committed, and that is recognised.
        assert wire.swallowed
        assert (value, runs) == (1, [1])
    else:
        assert (value, runs) == (2, [1, 1])
    assert balances(database) == {value: 0}
    assert lab.entries() == ["0 RESULT work"]


@servers
def test_a_server_that_says_nothing_any_more(
    database: JournalDatabase, wire: Line, make_lab: Callable[..., Lab]
) -> None:
    lab = make_lab(
        durable_database_url=wire.url,
        durable_ack_timeout=0.5,
        durable_lease_timeout=60.0,
        durable_transaction_timeout=1.0,
    )

    async def work(session: AsyncSession) -> None:
        wire.hang()
        await open_account(session, 1)

    async def body(context: DurableContext) -> None:
        await context.transaction(work)

    with pytest.raises(JournalUnavailable):
        lab.run(body)
    wire.flow()
    assert balances(database) == {}


# -- how it is said ---------------------------------------------------------------------------------------------


class OurSession(AsyncSession):
    pass


@step(effect=transactional())
async def decorated(session: AsyncSession, number: int) -> int:
    await open_account(session, number)
    return number


def test_who_gets_what(lab: Lab, database: JournalDatabase) -> None:
    maker = async_sessionmaker(class_=OurSession, binds={Account: sa.create_engine("sqlite://")})

    async def ours(session: OurSession) -> str:
        return type(session).__name__

    async def of_connection(session: AsyncSession) -> bool:
        return (await session.connection()) is (await session.connection())

    async def bare(session: Any) -> str:
        return type(session).__name__

    async def made(session: Any) -> str:
        await open_account(session, 2)
        return type(session).__name__

    async def body(context: DurableContext) -> list[Any]:
        return [
            await decorated(1),
            await context.transaction(ours),
            await context.transaction(bare),
            await context.transaction(of_connection),
            await context.transaction(StepDescriptor.transactional("made", session=maker), made),
            await context.transaction(StepDescriptor.transactional("core", session=AsyncConnection), bare),
        ]

    assert lab.run(body) == [1, "OurSession", "AsyncSession", True, "OurSession", "AsyncConnection"]
    assert balances(database) == {1: 0, 2: 0}


@pytest.mark.databases("sqlite")
def test_what_does_not_fit_is_refused(lab: Lab) -> None:
    async def wants_plain(session: Session) -> None: ...

    def wants_async(session: AsyncSession) -> None: ...

    async def body(context: DurableContext) -> None:
        with pytest.raises(ConfigurationError, match="coroutine function and would be given Session"):
            await context.transaction(wants_plain)
        with pytest.raises(ConfigurationError, match="plain function and would be given AsyncSession"):
            context.transaction(wants_async)

    lab.run(body)
    with pytest.raises(ConfigurationError, match="Django's transactions are for plain functions"):
        step(effect=transactional(using="default"))(open_account)


@pytest.mark.databases("sqlite")
def test_a_driver_that_is_missing_is_named(
    lab: Lab, make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(context: DurableContext) -> str:
        try:
            await context.transaction(open_account, 1)
        except ConfigurationError as error:
            return str(error)
        return "?"

    assert "journal in memory" in make_lab(durable_database_url="sqlite://").run(body)
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    assert "pip install 'aiosqlite'" in lab.run(body, id="driver")
    monkeypatch.setitem(sys.modules, "greenlet", None)
    assert "pip install 'sqlalchemy[asyncio]'" in lab.run(body, id="greenlet")


@servers
def test_a_conflict_that_stays_is_the_steps_error(lab: Lab, database: JournalDatabase) -> None:
    runs = []
    # The database's own words for it, without the wait for a real one.
    statement = {
        "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
        "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'conflict'",
    }[database.kind]

    async def unlucky(connection: AsyncConnection) -> None:
        runs.append(1)
        await by_core(connection, 1)
        await connection.exec_driver_sql(statement)

    async def body(context: DurableContext) -> None:
        with pytest.raises(OperationalError):
            await context.transaction(StepDescriptor.transactional("unlucky", tries=3), unlucky)

    lab.run(body)
    assert len(runs) == 3
    assert balances(database) == {}
