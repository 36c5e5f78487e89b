"""Messages in the transaction of an asynchronous session: they share its fate, on each database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, group
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from celery_durable import ConfigurationError, DurableContext, DurableTask, enqueue
from tests.integration.outbox_lab import Shop, orders
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase

pytestmark = pytest.mark.brokers("memory")

KINDS = pytest.mark.parametrize("kind", ["session", "connection"])
DRIVERS = {
    "sqlite": ("sqlite+aiosqlite", "aiosqlite"),
    "postgresql": ("postgresql+psycopg", "psycopg"),
    "mysql": ("mysql+asyncmy", "asyncmy"),
}


@pytest.fixture
def make_shop(database: JournalDatabase, broker: MessageBroker) -> Iterator[Callable[..., Shop]]:
    pytest.importorskip(DRIVERS[database.kind][1], reason="no driver for asyncio")
    opened: list[Shop] = []

    def make(**settings: Any) -> Shop:
        opened.append(Shop(database, broker, **settings))
        return opened[-1]

    yield make
    for shop in opened:
        shop.close()


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    return make_shop()


def with_engine(database: JournalDatabase, work: Callable[[AsyncEngine], Coroutine[Any, Any, None]]) -> None:
    """Work with the user's own asynchronous engine."""

    async def all_of_it() -> None:
        engine = create_async_engine(sa.make_url(database.url).set(drivername=DRIVERS[database.kind][0]))
        try:
            await work(engine)
        finally:
            await engine.dispose()

    asyncio.run(all_of_it())


@asynccontextmanager
async def transaction(engine: AsyncEngine, kind: str) -> AsyncIterator[Any]:
    if kind == "session":
        async with AsyncSession(engine) as session, session.begin():
            yield session
    else:
        async with engine.begin() as connection:
            yield connection


@KINDS
def test_messages_share_the_fate_of_the_transaction(shop: Shop, database: JournalDatabase, kind: str) -> None:
    async def undone(engine: AsyncEngine) -> None:
        async with transaction(engine, kind) as where:
            await where.execute(sa.insert(orders).values(id=1))
            await where.run_sync(enqueue, shop.durable, ("undone",))
            await where.run_sync(enqueue, shop.plain, ("undone",))
            raise LookupError

    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(LookupError):
            await undone(engine)
        async with transaction(engine, kind) as where:
            await where.execute(sa.insert(orders).values(id=2))
            await where.run_sync(enqueue, shop.durable, (1,))
            inner = await where.begin_nested()
            await where.run_sync(enqueue, shop.plain, ("undone",))
            await inner.rollback()
            await where.run_sync(enqueue, chain(shop.plain.si(2), group(shop.durable.si(3))), countdown=0)
            assert shop.sent() == []

    with_engine(database, work)
    assert shop.orders() == {2}
    assert shop.sent() == [("durable", [1]), ("plain", [2])]
    assert [task for _, task in shop.rows()] == ["durable"]


def test_what_the_process_did_not_send_is_sent_by_recovery(
    shop: Shop, database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_durable.messaging.joining.send_committed", lambda messages: None)

    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(enqueue, shop.plain, (1,))
            await session.run_sync(enqueue, shop.durable, (2,))

    with_engine(database, work)
    shop.due()
    shop.service.round()
    assert shop.sent() == [("plain", [1]), ("durable", [2])]


def test_in_eager_mode_it_runs_after_the_commit(make_shop: Callable[..., Shop], database: JournalDatabase) -> None:
    shop = make_shop(task_always_eager=True)
    seen: list[Any] = []
    note = shop.task("note", lambda what: seen.append((what, shop.orders())))

    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(sa.insert(orders).values(id=1))
            await session.run_sync(enqueue, note, ("kept",))
            assert seen == []

    with_engine(database, work)
    assert seen == [("kept", {1})]
    assert shop.rows() == []


def test_a_step_sends_with_its_rows(shop: Shop) -> None:
    async def order(session: AsyncSession, number: int) -> None:
        await session.execute(sa.insert(orders).values(id=number))
        await session.run_sync(enqueue, shop.plain, (number,))

    async def by_connection(connection: AsyncConnection, number: int) -> None:
        await connection.execute(sa.insert(orders).values(id=number))
        await connection.run_sync(enqueue, shop.durable, (number,))
        if number == 2:
            raise LookupError

    async def body(self: Any) -> None:
        context: DurableContext = self.durable
        await context.transaction(order, 1)
        with pytest.raises(LookupError):
            await context.transaction("undone", by_connection, 2)
        await context.transaction(by_connection, 3)

    task = shop.task("body", body, base=DurableTask, bind=True)
    task.apply().get()
    assert shop.orders() == {1, 3}
    assert shop.sent() == [("plain", [1]), ("durable", [3])]


@pytest.mark.databases("postgresql")
@KINDS
def test_what_is_to_be_written_instead_is_said(shop: Shop, database: JournalDatabase, kind: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with transaction(engine, kind) as where:
            with pytest.raises(ConfigurationError, match=f"await {kind}.run_sync\\(enqueue, task"):
                enqueue(where, shop.durable, (1,))

    with_engine(database, work)
    assert shop.rows() == []
