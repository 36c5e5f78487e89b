"""Django's own transactions: steps whose rows the ORM writes, and messages that join ``atomic()``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import django
import pymysql
import pytest
import sqlalchemy as sa
from celery import chain, chord, group
from django.conf import settings as django_settings
from django.db import IntegrityError, connection, connections, models, transaction

from celery_durable import (
    ConfigurationError,
    DurableContext,
    StepDescriptor,
    TransactionMisused,
    TransactionTimeout,
    enqueue,
    step,
    transactional,
)
from celery_durable.store import migrations
from tests.integration.outbox_lab import Shop
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.lab import Crash, Lab, Parked

# Django wants mysqlclient; PyMySQL takes its place, and its version's.
pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()

if not django_settings.configured:
    django_settings.configure(DATABASES={}, USE_TZ=True)
    django.setup()

ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}
#: The database's own words for it, without the wait for a real one.
CONFLICTS = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'conflict'",
}
servers = pytest.mark.databases("postgresql", "mysql")


class Order(models.Model):
    number = models.IntegerField(unique=True)
    note = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"
        db_table = "django_order"


def configured(database: JournalDatabase) -> dict[str, Any]:
    url = sa.make_url(database.url)
    given = {"NAME": url.database, "HOST": url.host or "", "PORT": url.port or "", "USER": url.username or ""}
    return connections.configure_settings({"default": {"ENGINE": ENGINES[database.kind], **given}})["default"]


@pytest.fixture(autouse=True)
def tables(database: JournalDatabase) -> Iterator[None]:
    """Django's default database is that of the journal."""
    migrations.upgrade(database.url)
    connections.databases["default"] = configured(database)
    with contextlib.suppress(AttributeError):
        del connections["default"]
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    yield
    connection.close()
    del connections["default"]


def numbers() -> list[int]:
    return sorted(Order.objects.values_list("number", flat=True))


@step(effect=transactional(using="default"))
def order(number: int) -> int:
    Order.objects.create(number=number)
    return number


# -- steps ------------------------------------------------------------------------------------------------------


def test_rows_of_the_orm_and_the_entry_commit_together(lab: Lab) -> None:
    def body(context: DurableContext) -> list[int]:
        context.step("before", str, 1)
        return [order(1), order(2)]

    assert lab.run(body) == [1, 2]
    lab.sql(sa.text("UPDATE durable_execution SET state = 'pending', wake_at = NULL"))
    assert lab.run(body) == [1, 2]
    assert numbers() == [1, 2]
    assert lab.entries() == ["0 RESULT before", "1 RESULT order", "2 RESULT order"]
    assert lab.execution().steps == 3


@pytest.mark.parametrize("point", ["step.after_effect", "transaction.before_commit", "transaction.after_commit"])
def test_a_crash_leaves_both_or_neither(lab: Lab, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    def die(name: str, *_: str) -> None:
        if name == point:
            raise Crash

    monkeypatch.setattr("celery_durable.steps.transactions.drive.reached", die)
    lab.crash(lambda context: order(1))
    monkeypatch.undo()
    assert numbers() == ([1] if point == "transaction.after_commit" else [])
    assert lab.run(lambda context: order(1)) == 1
    assert numbers() == [1]


def test_errors_roll_back_and_are_the_steps(lab: Lab) -> None:
    def body(context: DurableContext) -> str:
        order(1)
        try:
            order(1)
        except IntegrityError as error:
            return type(error).__name__
        return "?"

    assert lab.run(body) == "IntegrityError"
    assert numbers() == [1]
    assert lab.entries() == ["0 RESULT order", "1 ERROR order"]


def test_an_owner_that_was_fenced_off_commits_no_rows(lab: Lab) -> None:
    def body(context: DurableContext) -> None:
        context._run.flush()
        lab.sql(sa.text("UPDATE durable_execution SET epoch = epoch + 1"))
        order(1)

    with pytest.raises(Parked):
        lab.run(body)
    assert numbers() == []


def swallow() -> None:
    Order.objects.create(number=1)
    try:
        with transaction.atomic():
            Order.objects.create(number=1)
    except IntegrityError:
        Order.objects.create(number=2)


def careless() -> None:
    Order.objects.create(number=1)
    try:
        with transaction.atomic(savepoint=False):
            Order.objects.create(number=1)
    except IntegrityError:
        pass


def undo() -> None:
    Order.objects.create(number=1)
    transaction.set_rollback(True)


def in_sql(statement: str) -> Callable[[], None]:
    def end() -> None:
        Order.objects.create(number=1)
        with connection.cursor() as cursor:
            cursor.execute(statement)

    return end


MISUSES: dict[str, Callable[[], Any]] = {
    "rolls back": undo,
    "swallows": careless,
    "commits in SQL": in_sql("COMMIT"),
    "rolls back in SQL": in_sql("ROLLBACK"),
}


@pytest.mark.parametrize("how", MISUSES)
def test_an_operation_must_not_end_its_transaction(lab: Lab, how: str) -> None:
    misuse = step(name="misuse", effect=transactional(using="default"))(MISUSES[how])

    def body(context: DurableContext) -> None:
        with pytest.raises(TransactionMisused):
            misuse()

    lab.run(body)
    assert numbers() == []


def test_savepoints_are_the_operations_own(lab: Lab) -> None:
    lab.run(lambda context: step(effect=transactional(using="default"))(swallow)())
    assert numbers() == [1, 2]


def test_hooks_run_after_the_commit_and_their_errors_do_not_undo_it(lab: Lab) -> None:
    seen = []

    @step(effect=transactional(using="default"))
    def hooked() -> str:
        Order.objects.create(number=1)
        transaction.on_commit(lambda: seen.append(numbers()))
        transaction.on_commit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        return "done"

    assert lab.run(lambda context: hooked()) == "done"
    assert seen == [[1]]
    assert lab.entries() == ["0 RESULT hooked"]


@servers
def test_a_conflict_has_the_operation_run_again(lab: Lab, database: JournalDatabase) -> None:
    runs = []

    @step(effect=transactional(using="default"))
    def unlucky() -> int:
        runs.append(1)
        Order.objects.create(number=len(runs))
        if len(runs) < 3:
            with connection.cursor() as cursor:
                cursor.execute(CONFLICTS[database.kind])
        return len(runs)

    assert lab.run(lambda context: unlucky()) == 3
    assert numbers() == [3]


@servers
def test_a_dead_lock_has_one_of_the_two_run_again(lab: Lab) -> None:
    both = threading.Barrier(2)
    runs: list[int] = []
    for number in (1, 2):
        Order.objects.create(number=number)

    @step(effect=transactional(using="default"))
    def move(first: int, second: int) -> None:
        runs.append(first)
        Order.objects.filter(number=first).update(note=models.F("note") + 1)
        if runs.count(first) == 1:
            both.wait(30)
        Order.objects.filter(number=second).update(note=models.F("note") + 10)

    def branch(first: int, second: int) -> None:
        try:
            move(first, second)
        finally:
            connection.close()

    def body(context: DurableContext) -> None:
        with context.parallel() as branches:
            branches.submit(branch, 1, 2)
            branches.submit(branch, 2, 1)

    lab.run(body)
    assert len(runs) == 3
    assert sorted(Order.objects.values_list("number", "note")) == [(1, 11), (2, 11)]


@servers
def test_a_connection_that_is_lost_has_the_operation_run_again(lab: Lab, database: JournalDatabase) -> None:
    runs = []

    @step(effect=transactional(using="default"))
    def cut_off() -> int:
        runs.append(1)
        Order.objects.create(number=len(runs))
        if len(runs) == 1:
            raw = connection.connection
            if database.kind == "mysql":
                kill = f"KILL {raw.thread_id()}"
            else:
                kill = f"SELECT pg_terminate_backend({raw.info.backend_pid})"
            with lab.runtime.database.engine.connect() as killer:
                killer.exec_driver_sql(kill)
            numbers()
        return len(runs)

    assert lab.run(lambda context: cut_off()) == 2
    assert numbers() == [2]


def test_an_operation_that_takes_too_long(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_transaction_timeout=0.05)

    @step(effect=transactional(using="default"))
    def slow() -> None:
        Order.objects.create(number=1)
        threading.Event().wait(0.1)

    def body(context: DurableContext) -> None:
        with pytest.raises(TransactionTimeout):
            slow()

    lab.run(body)
    assert numbers() == []


def test_where_it_cannot_be(lab: Lab, tmp_path: Any, database: JournalDatabase) -> None:
    elsewhere = {"ENGINE": ENGINES["sqlite"], "NAME": str(tmp_path / "elsewhere.db")}
    connections.databases["elsewhere"] = connections.configure_settings({"default": elsewhere})["default"]

    def body(context: DurableContext) -> None:
        with pytest.raises(ConfigurationError, match=r"elsewhere\.db.*the journal is in"):
            context.step(_using("elsewhere"), numbers)
        with pytest.raises(ConfigurationError, match="no alias"):
            context.step(_using("nowhere"), numbers)
        with transaction.atomic(), pytest.raises(ConfigurationError, match="Leave the block"):
            order(1)

    lab.run(body)
    connections["elsewhere"].close()
    del connections["elsewhere"]
    del connections.databases["elsewhere"]


def _using(alias: str) -> StepDescriptor:
    from celery_durable.effects import Effect

    return StepDescriptor(f"on {alias}", Effect.TRANSACTIONAL, transaction=transactional(using=alias))


def test_an_async_body(lab: Lab) -> None:
    """Django refuses its connection to the thread of the event loop; the step has another thread for it."""
    crashes = [Crash()]

    async def branch(number: int) -> int:
        await asyncio.sleep(0)
        return order(number)

    async def body(context: DurableContext) -> list[int]:
        first = order(1)
        async with context.parallel() as branches:
            made = [branches.submit(branch, number) for number in (2, 3)]
        with pytest.raises(IntegrityError):
            order(1)
        if crashes:
            raise crashes.pop()
        return [first, *[one.result() for one in made]]

    lab.crash(body)
    assert lab.run(body) == [1, 2, 3]
    assert numbers() == [1, 2, 3]


def test_an_async_task_that_is_called_directly(lab: Lab) -> None:
    async def body(context: DurableContext) -> int:
        return order(1)

    lab._body = body
    assert asyncio.run(lab.job()) == 1
    assert numbers() == [1]


def test_a_task_that_is_called_directly(lab: Lab) -> None:
    lab._body = lambda context: order(1)
    assert lab.job() == 1
    assert numbers() == [1]


# -- messages ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(request: pytest.FixtureRequest, database: JournalDatabase, broker: MessageBroker) -> Iterator[Shop]:
    opened = Shop(database, broker, **getattr(request, "param", {}))
    yield opened
    opened.close()


def joined(shop: Shop) -> Callable[..., Any]:
    """How the tests send: by name of the setting, or with ``enqueue``."""
    if shop.app.conf.get("durable_outbox_using"):
        return lambda task, args: task.apply_async(args)
    return lambda task, args: enqueue(connection, task, args)


SETTINGS: list[dict[str, Any]] = [{}, {"durable_outbox_using": "default"}]
ways = pytest.mark.parametrize("shop", SETTINGS, ids=["enqueue", "setting"], indirect=True)
memory = pytest.mark.brokers("memory")


@memory
@ways
def test_messages_share_the_fate_of_atomic(shop: Shop) -> None:
    send = joined(shop)

    @transaction.atomic
    def undone() -> None:
        Order.objects.create(number=1)
        send(shop.durable, ("undone",))
        send(shop.plain, ("undone",))
        raise LookupError

    with pytest.raises(LookupError):
        undone()
    assert (shop.rows(), shop.sent()) == ([], [])
    with transaction.atomic():
        Order.objects.create(number=2)
        send(shop.plain, (1,))
        with pytest.raises(LookupError):
            undone()
        with transaction.atomic():
            send(shop.durable, (2,))
        assert shop.sent() == []
    assert numbers() == [2]
    assert shop.sent() == [("plain", [1]), ("durable", [2])]
    assert [task for _, task in shop.rows()] == ["durable"]


@memory
@ways
def test_recovery_sends_what_the_process_did_not(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_durable.messaging.joining.send_committed", lambda messages: None)
    send = joined(shop)
    with transaction.atomic():
        send(shop.plain, (1,))
        send(shop.durable, (2,))
    shop.due()
    shop.service.round()
    assert shop.sent() == [("plain", [1]), ("durable", [2])]


@memory
@ways
def test_a_broker_that_is_down_is_waited_for_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Django has a hook for each call; each would wait for the broker anew, and with it whoever committed."""
    caplog.set_level(logging.WARNING, logger="celery_durable.messaging.after_commit")
    tried = []

    def down(*_: Any) -> Any:
        tried.append(1)
        raise OSError("refused")

    monkeypatch.setattr("celery_durable.messaging.after_commit.past_outbox", down)
    send = joined(shop)
    for times in (1, 2):
        with transaction.atomic():
            for number in range(3):
                send(shop.plain if number else shop.durable, (number,))
        assert len(tried) == times
    assert caplog.messages[-3:] == [
        "1 message(s) are recorded and could not be sent at once (OSError: refused); recovery sends them",
        *["1 more message(s) are recorded; recovery sends them"] * 2,
    ]
    monkeypatch.undo()
    with transaction.atomic():
        send(shop.plain, ("up again",))
    assert shop.sent() == [("plain", ["up again"])]
    shop.recover()
    assert sorted(args for _, args in shop.sent()) == [[0], [0], [1], [1], [2], [2]]


@memory
@ways
def test_canvas_and_known_ids(shop: Shop) -> None:
    with transaction.atomic():
        if shop.app.conf.get("durable_outbox_using"):
            group(shop.durable.s(1), chain(shop.plain.s(2), shop.durable.s())).apply_async()
            chord([shop.plain.s(3)], shop.total.s()).apply_async()
        else:
            enqueue(connection, group(shop.durable.s(1), chain(shop.plain.s(2), shop.durable.s())))
            enqueue(connection, chord([shop.plain.s(3)], shop.total.s()))
    assert shop.sent() == [("durable", [1]), ("plain", [2]), ("plain", [3])]
    for _ in range(2):
        with transaction.atomic():
            enqueue(connection, shop.durable, (4,), durable_id="four")
    assert shop.sent() == [("durable", [4])]


@memory
@ways
def test_outside_atomic(shop: Shop) -> None:
    if shop.app.conf.get("durable_outbox_using"):
        shop.plain.apply_async((1,))
        assert shop.sent() == [("plain", [1])]
        assert shop.rows() == []
    else:
        with pytest.raises(ConfigurationError, match="not inside"):
            enqueue(connection, shop.plain, (1,))


@memory
@pytest.mark.parametrize("shop", [{"durable_outbox_using": "default"}], indirect=True)
@pytest.mark.parametrize("send", [lambda shop: shop.plain.delay(1), lambda shop: shop.app.send_task("plain", (1,))])
def test_the_first_message_of_a_process_joins_too(shop: Shop, send: Callable[[Shop], Any]) -> None:
    """Celery has bound no durable task by then: it binds tasks when they are used."""
    with transaction.atomic():
        send(shop)
        assert shop.unsent() == 0  # seen from elsewhere
        transaction.set_rollback(True)
    assert (shop.rows(), shop.sent()) == ([], [])


@memory
@pytest.mark.parametrize("shop", [{"durable_outbox_using": "nowhere"}], indirect=True)
def test_the_setting_is_named_where_its_alias_is_unknown(shop: Shop) -> None:
    with pytest.raises(ConfigurationError) as told:
        shop.plain.delay(1)
    assert told.value.message == (
        "durable_outbox_using: 'nowhere' is no alias of Django's DATABASES, which are 'default'."
    )


@memory
@pytest.mark.databases("postgresql")
def test_a_commit_that_the_server_answers_with_a_rollback_sends_nothing(shop: Shop) -> None:
    with transaction.atomic():
        enqueue(connection, shop.durable, (1,))
        with connection.cursor() as cursor, pytest.raises(Exception, match="division"):
            cursor.connection.execute("SELECT 1 / 0")
    assert shop.sent() == []
    assert shop.rows() == []


@memory
def test_a_step_sends_with_its_rows(shop: Shop, lab: Lab) -> None:
    @step(effect=transactional(using="default"))
    def order_and_send(number: int) -> None:
        Order.objects.create(number=number)
        enqueue(connection, shop.plain, (number,))

    lab.run(lambda context: order_and_send(1))
    assert numbers() == [1]
    assert shop.sent() == [("plain", [1])]
