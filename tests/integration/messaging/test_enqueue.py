"""Messages in the caller's own transaction: they share its fate, on each database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, group
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_durable import ConfigurationError, DurableIdConflict, DurableTask, SchemaError, enqueue
from tests.integration.outbox_lab import Shop
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase

pytestmark = pytest.mark.brokers("memory")

KINDS = pytest.mark.parametrize("kind", ["session", "connection"])


@pytest.fixture
def shop(database: JournalDatabase, broker: MessageBroker) -> Iterator[Shop]:
    opened = Shop(database, broker)
    yield opened
    opened.close()


# -- commit and rollback ----------------------------------------------------------------------------------------


@KINDS
def test_what_is_committed_is_sent_and_in_its_order(shop: Shop, kind: str) -> None:
    with shop.transaction(kind) as where:
        shop.order(where, 1)
        for number in range(4):
            enqueue(where, shop.durable if number % 2 else shop.plain, (number,))
        assert shop.sent() == []
        assert shop.rows() == []
    assert shop.orders() == {1}
    assert shop.sent() == [("plain", [0]), ("durable", [1]), ("plain", [2]), ("durable", [3])]
    # A message of a plain task is forgotten when it is sent.
    assert [task for _, task in shop.rows()] == ["durable", "durable"]


@KINDS
def test_what_is_rolled_back_never_existed(shop: Shop, kind: str) -> None:
    def buy() -> None:
        with shop.transaction(kind) as where:
            shop.order(where, 1)
            enqueue(where, shop.durable, (1,))
            enqueue(where, shop.plain, (1,))
            raise LookupError

    with pytest.raises(LookupError):
        buy()
    assert shop.orders() == set()
    assert shop.rows() == []
    shop.recover()
    assert shop.sent() == []


@KINDS
def test_a_connection_forgets_what_was_rolled_back(shop: Shop, kind: str) -> None:
    with Session(shop.engine) if kind == "session" else shop.engine.connect() as where:
        enqueue(where, shop.durable, ("undone",))
        where.rollback()
        enqueue(where, shop.durable, ("done",))
        where.commit()
        assert shop.sent() == [("durable", ["done"])]
        where.execute(sa.select(1))
        where.commit()
        assert shop.sent() == []


@KINDS
def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(shop: Shop, kind: str) -> None:
    with shop.transaction(kind) as where:
        enqueue(where, shop.durable, ("before",))
        for task in (shop.durable, shop.plain):
            inner = where.begin_nested()
            enqueue(where, task, ("undone",))
            inner.rollback()
        with where.begin_nested():
            enqueue(where, shop.plain, ("nested",))
        where.execute(sa.text("SAVEPOINT by_hand"))
        enqueue(where, shop.plain, ("undone by hand",))
        where.execute(sa.text("ROLLBACK TO SAVEPOINT by_hand"))
        enqueue(where, shop.plain, ("after",))
    expected = [("durable", ["before"]), ("plain", ["nested"]), ("plain", ["after"])]
    assert shop.sent() == expected
    shop.recover()
    assert shop.sent() == expected[:1]  # the plain ones are done with


@pytest.mark.databases("postgresql")
def test_a_commit_that_the_server_answers_with_a_rollback_sends_nothing(shop: Shop) -> None:
    """So it is where an error was swallowed. Neither the driver nor SQLAlchemy say anything of it."""
    with shop.engine.connect() as connection:
        enqueue(connection, shop.durable, (1,))
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1 / 0")
        connection.commit()
    assert shop.sent() == []
    assert shop.rows() == []


def test_a_session_of_the_application_and_one_per_thread(shop: Shop) -> None:
    session = scoped_session(sessionmaker(shop.engine))
    session.add_all([])
    enqueue(session, shop.durable.s(7))
    session.commit()
    session.remove()
    assert shop.sent() == [("durable", [7])]


def test_what_changes_before_the_commit_is_sent_as_it_was(shop: Shop) -> None:
    items = [1]
    with shop.transaction("session") as session:
        enqueue(session, shop.plain, (items,))
        items.append(2)
    assert shop.sent() == [("plain", [[1]])]


# -- the safety net ---------------------------------------------------------------------------------------------


def test_what_the_broker_loses_is_sent_again_and_in_its_order(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_durable.messaging.joining.send_committed", lambda messages: None)  # the process died
    with shop.transaction("session") as session:
        for number in range(6):
            enqueue(session, shop.durable if number % 2 else shop.plain, (number,))
    shop.due()
    shop.service.round()
    assert shop.sent() == [("durable" if n % 2 else "plain", [n]) for n in range(6)]
    assert shop.unsent() == 0
    shop.recover()  # nobody has begun the durable ones
    assert shop.sent() == [("durable", [n]) for n in (1, 3, 5)]


def test_a_broker_that_is_down_fails_nobody(database: JournalDatabase, broker: MessageBroker) -> None:
    shop = Shop(database, broker)
    shop.app.conf.update(broker_url="redis://127.0.0.1:1/0", result_backend="redis://127.0.0.1:1/0")
    with shop.transaction("session") as session:
        enqueue(session, shop.durable, (1,))
        enqueue(session, shop.plain, (2,), countdown=1)
    assert shop.unsent() == 1
    shop.due()
    with pytest.raises(Exception, match="refused"):
        shop.service.round()
    # As if it had not been tried.
    with shop.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT sends FROM durable_outbox")).scalar_one() == 0
        assert connection.execute(sa.text("SELECT sends FROM durable_execution")).scalar_one() == 0
    shop.close()
    again = Shop(database, broker)  # another process, which has a broker
    again.due()
    again.service.round()
    assert again.sent() == [("durable", [1]), ("plain", [2])]
    again.close()


# -- what a message is ------------------------------------------------------------------------------------------


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("way", ["at once", "by recovery"])
@pytest.mark.parametrize("task", ["durable", "plain"])
def test_a_message_has_everything_that_it_was_given(
    shop: Shop, way: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "by recovery":
        monkeypatch.setattr("celery_durable.messaging.joining.send_committed", lambda messages: None)
    other = shop.broker.another_queue("other")
    expires = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)
    eta = expires - dt.timedelta(minutes=30)
    with shop.transaction("session") as session:
        result = enqueue(
            session, getattr(shop, task).s(1, key="word"), queue=other, priority=7, expires=expires, eta=eta,
            headers={"tenant": "acme"}, time_limit=500, soft_time_limit=400, shadow="a shadow", serializer="msgpack",
            compression="zlib", link=shop.plain.s(), retry=False,
        )  # fmt: skip
    if way == "by recovery":
        shop.due()
        shop.service.round()
    [message] = shop.messages(other)
    headers = message.headers
    assert (headers["id"], headers["task"], headers["tenant"]) == (result.id, task, "acme")
    assert (headers["timelimit"], headers["shadow"]) == ([500, 400], "a shadow")
    assert (headers["eta"], headers["expires"]) == (eta.isoformat(), expires.isoformat())
    assert (message.properties["priority"], message.content_type) == (7, "application/x-msgpack")
    message.accept = {message.content_type}
    args, kwargs, embed = message.decode()
    assert (list(args), kwargs) == ([1], {"key": "word"})
    assert [one["task"] for one in embed["callbacks"]] == ["plain"]


# -- bad input --------------------------------------------------------------------------------------------------


def test_another_database_is_refused(shop: Shop, tmp_path: Any) -> None:
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path}/elsewhere.db")
    with elsewhere.begin() as connection, pytest.raises(ConfigurationError, match=r"elsewhere\.db.*the journal is in"):
        enqueue(connection, shop.durable, (1,))
    assert shop.rows() == []


@pytest.mark.databases("postgresql", "mysql")
def test_another_database_of_the_same_server_is_refused(shop: Shop) -> None:
    name = {"postgresql": "postgres", "mysql": "mysql"}[shop.engine.url.get_backend_name()]
    engine = sa.create_engine(shop.engine.url.set(database=name), poolclass=sa.NullPool)
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="durable_database_url"):
        enqueue(connection, shop.durable, (1,))


@pytest.mark.databases("sqlite")
def test_tables_are_not_made_in_a_file_that_the_caller_has_locked(
    database: JournalDatabase, broker: MessageBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_durable.store.migrations.upgrade", lambda url: None)
    shop = Shop(database, broker, durable_ack_timeout=0.1)
    monkeypatch.undo()
    with shop.transaction("session") as session:
        shop.order(session, 1)
        with pytest.raises(SchemaError, match="durable upgrade"):
            enqueue(session, shop.durable, (1,))
    with shop.transaction("session") as session:
        enqueue(session, shop.durable, (1,))
    assert shop.sent() == [("durable", [1])]
    shop.close()


@pytest.mark.databases("sqlite")
def test_what_cannot_be_joined_is_refused(shop: Shop) -> None:
    automatic = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    with automatic.connect() as connection, pytest.raises(ConfigurationError, match="autocommit"):
        enqueue(connection, shop.durable)
    with pytest.raises(ConfigurationError, match="run_sync"):
        enqueue(AsyncSession(), shop.durable)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="several databases"):
        enqueue(Session(), shop.durable)
    with pytest.raises(ConfigurationError, match=r"Session or Connection, or django\.db\.connection, not"):
        enqueue("shop", shop.durable)  # type: ignore[arg-type]
    with shop.transaction("session") as session:
        with pytest.raises(ConfigurationError, match="a task or a signature"):
            enqueue(session, "durable")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="1 to 255 characters"):
            enqueue(session, shop.durable, task_id="x" * 256)
    assert shop.rows() == []


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("eager", [False, True])
def test_nothing_can_be_sent_but_not_by_a_chain(shop: Shop, eager: bool) -> None:
    """An empty group has a result, as Celery gives it; an empty chain has none, and would be lost unnoticed."""
    shop.app.conf.task_always_eager = eager
    with shop.transaction("session") as session:
        assert enqueue(session, group(app=shop.app)).get() == []
        for empty in (chain(), chain([]), chain(chain()), chain(chain(), chain())):
            with pytest.raises(ConfigurationError, match=r"enqueue\(\) of an empty chain: there is nothing to send\."):
                enqueue(session, empty)
    assert (shop.rows(), shop.sent()) == ([], [])


def test_an_id_that_is_known_is_not_sent_again(shop: Shop) -> None:
    for _ in range(2):
        with shop.transaction("session") as session:
            shop.order(session, len(shop.orders()))
            result = enqueue(session, shop.durable, (1,), task_id="order-1")
            assert result.id == "order-1"
    assert shop.orders() == {0, 1}  # the second one's transaction was not disturbed
    assert shop.sent() == [("durable", [1])]
    shop.recover()
    assert shop.sent() == [("durable", [1])]

    another = shop.task("another", lambda: None, base=DurableTask)
    with shop.transaction("session") as session, pytest.raises(ConfigurationError, match="of task 'durable' has it"):
        enqueue(session, another, task_id="order-1")


def test_a_durable_id_names_one_call(shop: Shop) -> None:
    for number in (1, 1, 2):
        with shop.transaction("session") as session:
            if number == 2:
                with pytest.raises(DurableIdConflict, match="belongs to another call"):
                    enqueue(session, shop.durable, (number,), durable_id="order-1")
            else:
                assert enqueue(session, shop.durable, (number,), durable_id="order-1").id == "order-1"
    with shop.transaction("session") as session, pytest.raises(DurableIdConflict, match="belongs to another call"):
        enqueue(session, group(shop.durable.s(n).set(durable_id="twice") for n in (1, 2)))
    assert shop.sent() == [("durable", [1])]


# -- eager mode -------------------------------------------------------------------------------------------------


def test_in_eager_mode_it_runs_after_the_commit(database: JournalDatabase, broker: MessageBroker) -> None:
    shop = Shop(database, broker, task_always_eager=True)
    seen: list[Any] = []
    note = shop.task("note", lambda what: seen.append((what, shop.orders())))
    with shop.transaction("session") as session:
        shop.order(session, 1)
        enqueue(session, note, ("kept",))
        inner = session.begin_nested()
        enqueue(session, note, ("undone",))
        inner.rollback()
        enqueue(session, note.s("signature"))
        assert seen == []
    assert seen == [("kept", {1}), ("signature", {1})]
    assert shop.rows() == []
    shop.close()
