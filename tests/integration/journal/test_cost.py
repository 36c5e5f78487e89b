"""What each operation costs in statements and commits: exact numbers, the same on every database.

Wall time belongs into the benchmarks; a protocol that became more talkative shows here.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from celery_durable import DurableTask, Effect, Intent, OnAmbiguous, State, StepDescriptor, enqueue, resolve
from celery_durable.runtime import Runtime
from celery_durable.store import migrations
from celery_durable.store.drivers.postgresql import PostgreSQL
from celery_durable.store.drivers.sqlite import SQLite
from tests.conftest import DATABASES, _use
from tests.support.databases import JournalDatabase
from tests.support.wait import eventually

GUARDED = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)
NAMED = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN, key=lambda n: f"order-{n}")
TWICE = StepDescriptor("twice", Effect.AT_LEAST_ONCE)
UNDOABLE = StepDescriptor("undoable", compensate=lambda result, number: None)

#: A first delivery: is there such an execution? Its row goes in with its first commit.
LOOK = [("select execution",)]
#: The first commit of an execution that goes on: its row, its message, its entries.
BEGIN = [("insert execution", "insert payload", "insert journal")]
#: The only commit of one that is over before its first flush.
ALL = [("insert execution", "insert payload", "insert journal", "insert payload")]
ALL_EMPTY = [("insert execution", "insert payload", "insert payload")]
#: The opening of what the broker may have delivered before, or would not deliver again.
OPEN = [("insert execution", "insert payload")]
#: A flush that somebody waits for.
FLUSH = [("update execution", "insert journal")]
#: The end of a body that has buffered results.
FINISH = [("update execution", "insert journal", "insert payload")]
FINISH_EMPTY = [("update execution", "insert payload")]
#: A body that leaves before its first flush, to be tried again; its new message takes the place of the first one.
SUSPEND = [("insert execution", "insert journal", "insert payload")]
#: A segment of 100 entries.
READ = [("select journal",)]
#: A message that was sent again: the row is there.
REOPEN = [("select execution", "update execution")]


def double(number: int) -> int:
    return 2 * number


def _words(statement: str) -> list[str]:
    """What a statement does to which table, in its order; ``select`` only where nothing is written."""
    found = re.findall(r"(?is)\b(insert(?: ignore)? into|update|delete from|select)\b[^()]*?\bdurable_(\w+)", statement)
    words = [f"{verb.split()[0].lower()} {table}" for verb, table in found]
    return [word for word in words if not word.startswith("select")] or words


def _is_body() -> bool:
    """The heartbeat and the recovery service work for all executions of a process together."""
    return not threading.current_thread().name.startswith("durable-")


class Meter:
    """Runs bodies in a real worker and notes what their threads say to the database."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._body: Callable[..., Any] = lambda context: None

        def job(task: DurableTask) -> Any:
            return self._body(task.durable)

        self.job = app.task(job, base=DurableTask, bind=True, name="job", autoretry_for=(OSError,), shared=False)
        self.job.default_retry_delay = 0

        def child(task: DurableTask) -> None:
            """Does nothing."""

        self.child = app.task(child, base=DurableTask, bind=True, name="child", shared=False)
        self.database = Runtime.of(app).database
        #: The transactions, each with its statements; a read stands for itself.
        self.said: list[tuple[str, ...]] = []
        #: Journeys to the server, on PostgreSQL: there a transaction can be one statement.
        self.fused = 0
        self._open: list[str] = []
        self._begun = False
        self.listen(self.database.engine)
        usual = self.database._driver
        if isinstance(usual, SQLite):
            #: Every statement, as SQLite itself tells it.
            event.listen(usual._engine, "connect", lambda raw, record: raw.set_trace_callback(self._on_sqlite))
        elif isinstance(usual, PostgreSQL) and self.database._autocommit is not None:
            self._listen_to(usual)
            event.listen(self.database._autocommit, "before_cursor_execute", self._on_read)
        operations = Runtime.of(app).transactions._database.engine
        if operations is not self.database.engine:
            self.listen(operations)

    def listen(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._on_statement)
        event.listen(engine, "commit", self._on_commit)

    def _on_statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if _is_body():
            self._open += _words(statement)
            if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                self._on_commit(connection)

    def _on_read(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if _is_body() and (words := _words(statement)):
            self.said.append(tuple(words))

    def _on_commit(self, connection: Any) -> None:
        if _is_body() and self._open:
            self.said.append(tuple(self._open))
            self._open.clear()

    def _on_sqlite(self, statement: str) -> None:
        if not _is_body():
            return
        if statement.startswith("BEGIN"):
            self._open.clear()
            self._begun = True
        elif statement.startswith(("COMMIT", "ROLLBACK")):
            self.said.append(tuple(self._open))
            self._open.clear()
            self._begun = False
        elif words := _words(statement):
            # The rows of a batch are told one by one.
            if words != ["insert journal"] or self._open[-1:] != words:
                self._open += words
            if not self._begun:
                self._on_commit(None)

    def _listen_to(self, usual: PostgreSQL) -> None:
        ask = usual._direct._on_a_line

        def heard(how: Any, statement: Any, values: dict[str, Any]) -> Any:
            if _is_body():
                self.said.append(tuple(_words(str(statement.compile(dialect=self.database.engine.dialect)))))
                self.fused += 1
            return ask(how, statement, values)

        usual._direct._on_a_line = heard  # type: ignore[method-assign]

    def cost(self, body: Callable[..., Any], **options: Any) -> list[tuple[str, ...]]:
        """What one delivery of a new execution says."""
        self._body = body
        self.said.clear()
        self.fused = 0
        self.job.apply_async(**options).get(timeout=30, interval=0.01)
        return list(self.said)


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JournalDatabase]:
    with _use(DATABASES, request.param).lend(tmp_path_factory.mktemp("database")) as lent:
        yield lent


@pytest.fixture(scope="module")
def meter(database: JournalDatabase) -> Iterator[Meter]:
    app = Celery("cost", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        **database.conf,
        task_default_queue="cost",  # no message of another test
        durable_flush_interval=20.0,  # only what somebody waits for is written
        durable_ack_timeout=5.0,
        durable_recovery_interval=25.0,
    )
    migrations.upgrade(database.url)
    meter = Meter(app)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        meter.cost(lambda context: None)  # whatever is done once per process
        yield meter
    Runtime.of(app).end()


def test_a_body_without_steps(meter: Meter):
    assert meter.cost(lambda context: 1) == LOOK + ALL_EMPTY


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_plain_steps_cost_no_commit_of_their_own(meter: Meter, steps: int):
    def body(context: Any) -> int:
        return sum(context.step("double", double, n) for n in range(steps))

    assert meter.cost(body) == LOOK + ALL


def test_a_guarded_step_costs_two_commits(meter: Meter):
    def body(context: Any) -> None:
        context.step(GUARDED, double, 1)
        context.step("double", double, 1)
        context.step(GUARDED, double, 2)

    assert meter.cost(body) == [*LOOK, *BEGIN, *FLUSH * 3, *FINISH_EMPTY]


def test_a_step_that_can_be_undone_costs_one_commit_which_takes_what_came_before_it_along(meter: Meter):
    def body(context: Any) -> None:
        context.step("double", double, 1)
        for n in range(3):
            context.step(UNDOABLE, double, n)
            context.step("double", double, n)

    # That there is something to undo goes with the first.
    assert meter.cost(body) == [*LOOK, *BEGIN, *FLUSH * 2, *FINISH]


def test_a_guarded_step_with_a_key_of_its_own_looks_for_it_and_keeps_it(meter: Meter):
    claim = [("select guard", "update execution", "insert guard", "insert journal")]
    begun = [*LOOK, *OPEN]
    assert meter.cost(lambda context: context.step(NAMED, double, 7)) == [*begun, *claim, *FLUSH, *FINISH_EMPTY]


def test_plain_steps_before_a_guarded_one_share_its_commit(meter: Meter):
    def body(context: Any) -> None:
        for n in range(20):
            context.step("double", double, n)
            context.step(TWICE, double, n)
        context.step(GUARDED, double, 1)

    assert meter.cost(body) == [*LOOK, *BEGIN, *FLUSH, *FINISH_EMPTY]


def test_a_transactional_step_costs_the_one_commit_that_its_rows_cost_anyway(meter: Meter):
    def write(connection: Connection) -> None:
        connection.execute(text("UPDATE durable_guard SET position = 0"))

    def body(context: Any) -> None:
        context.transaction(write)
        context.step("double", double, 1)
        context.transaction(write)

    entry = ("update execution", "insert journal")
    # What was buffered before goes first.
    assert meter.cost(body) == [*LOOK, *OPEN, ("update guard", *entry), *FLUSH, ("update guard", *entry), *FINISH_EMPTY]


def test_so_does_one_of_a_coroutine_function(meter: Meter):
    driver = {"sqlite": "aiosqlite", "postgresql": "psycopg", "mysql": "asyncmy"}[meter.database.dialect]
    pytest.importorskip(driver, reason="no driver for asyncio")
    meter.listen(Runtime.of(meter.app).transactions.asynchronous.engine)

    async def write(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE durable_guard SET position = 0"))

    async def body(context: Any) -> None:
        await context.transaction(write)
        context.step("double", double, 1)
        await context.transaction(write)

    entry = ("update execution", "insert journal")
    assert meter.cost(body) == [*LOOK, *OPEN, ("update guard", *entry), *FLUSH, ("update guard", *entry), *FINISH_EMPTY]


def test_parallel_branches_cost_no_commit_of_their_own(meter: Meter):
    def body(context: Any) -> None:
        with context.parallel() as branches:
            for n in range(8):
                branches.step("double", double, n)

    assert meter.cost(body) == LOOK + ALL


def steps_and_a_retry(steps: int) -> Callable[[Any], None]:
    deliveries = []

    def body(context: Any) -> None:
        for n in range(steps):
            context.step("double", double, n)
        deliveries.append(1)
        if len(deliveries) == 1:
            raise OSError("not yet")

    return body


def test_a_retry_costs_one_commit_and_its_replay_reads_hundreds_of_steps_at_a_time(meter: Meter):
    patches, scopes = READ, READ
    # Packs of a hundred steps each: four, then those that are left; the end of the journal needs no read.
    cost = meter.cost(steps_and_a_retry(650))
    assert cost == [*LOOK, *SUSPEND, *REOPEN, *patches, *READ * 2, *scopes, *FINISH_EMPTY]


def test_steps_that_were_committed_one_by_one_are_read_a_hundred_at_a_time(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("celery_durable.journal.writer.packed", lambda batch: batch)
    patches, scopes = READ, READ
    # A few, which turn out to be no packs; twice as many each time; two full segments, and one that is not.
    cost = meter.cost(steps_and_a_retry(350))
    assert cost == [*LOOK, *SUSPEND, *REOPEN, *patches, *READ * 8, *scopes, *FINISH_EMPTY]


def test_a_call_with_an_id_costs_its_caller_one_commit_and_its_repetition_a_look(meter: Meter):
    record = [("select execution", "insert execution", "insert payload")]
    once = str(uuid.uuid4())
    assert meter.cost(lambda context: 1, durable_id=once) == [*record, *REOPEN, *FINISH_EMPTY]
    assert meter.cost(lambda context: 1, durable_id=once) == [("select execution",)]


def test_a_sleep_costs_one_commit(meter: Meter):
    def body(context: Any) -> None:
        context.step("double", double, 1)
        context.sleep(0.3)

    # And one look at the clock, which is in no table.
    suspend, patches, scopes = BEGIN, READ, READ
    assert meter.cost(body) == [*LOOK, *suspend, *REOPEN, *patches, *READ, *scopes, *FINISH]


def test_a_short_sleep_costs_nothing_of_its_own(meter: Meter):
    def body(context: Any) -> None:
        context.sleep(0)
        context.sleep(0.01)

    assert meter.cost(body) == LOOK + ALL


def test_a_promise_costs_one_commit_to_make_and_one_to_wait_for(meter: Meter):
    made: list[Any] = []

    def body(context: Any) -> Any:
        made.append(context.promise("approval"))
        return context.wait(made[-1])

    def keep() -> None:
        eventually(lambda: made and Runtime.of(meter.app).operations.find(states=[State.SUSPENDED]))
        resolve(made[0].id, made[0].token, 5, app=meter.app)

    threading.Thread(target=keep, name="durable-keep").start()
    make = [(*BEGIN[0], "insert promise")]
    look = [("select promise",)]
    suspend = [("update execution", "insert journal", "update promise", "select promise")]
    assert meter.cost(body) == [*LOOK, *make, *look, *suspend, *REOPEN, *READ * 2, *look, *READ, *FINISH]


def test_a_resolution_costs_one_look_and_one_commit(meter: Meter):
    said: list[Any] = []

    def body(context: Any) -> Any:
        promise = context.promise("approval")
        meter.said.clear()
        resolve(promise.id, promise.token, 5, app=meter.app)
        said.extend(meter.said)
        return context.wait(promise)

    meter.cost(body)
    # Who shares it is asked for in two parts of one statement.
    shares = ["select promise"] * 2
    assert said == [tuple(shares), ("select execution", *shares, "select promise", "update promise")]


def test_children_cost_their_parent_one_commit_to_start_and_one_to_wait_for(meter: Meter):
    def body(context: Any) -> Any:
        return context.gather(*(meter.child.s() for _ in range(5)))

    said = meter.cost(body)
    # All go in with the entry that names them: many rows in each statement.
    start = (*BEGIN[0], "insert promise", "insert execution", "insert payload")
    suspend = ("update execution", "insert journal", "update promise", "select promise")
    assert [one for one in said if "insert promise" in one] == [start]
    assert said.count(suspend[:1] + suspend[2:]) + said.count(suspend) == 1
    # Looked at before it leaves and when all have ended; then what they brought is read. Not once for each child.
    assert said.count(("select promise",)) == 3


@pytest.mark.databases("postgresql")
def test_postgresql_is_told_each_transaction_in_one_statement(meter: Meter):
    def body(context: Any) -> None:
        context.step("double", double, 1)
        context.step(GUARDED, double, 1)

    assert meter.cost(body) == [*LOOK, *BEGIN, *FLUSH, *FINISH_EMPTY]
    assert meter.fused == 4


def test_where_the_broker_does_not_vouch_for_the_message_its_row_is_written_first(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Runtime.of(meter.app), "trusts_broker", False)
    assert meter.cost(lambda context: context.step("double", double, 1)) == OPEN + FINISH


@pytest.fixture
def caller(meter: Meter, database: JournalDatabase) -> Iterator[Engine]:
    """Somebody who enqueues in transactions of his own."""
    engine = create_engine(database.url)
    with engine.begin() as connection:
        enqueue(connection, meter.job, queue="nobody's")  # whatever is asked once per engine
    meter.listen(engine)
    meter.said.clear()
    yield engine
    engine.dispose()


def test_enqueueing_costs_no_commit_of_its_own(meter: Meter, caller: Engine):
    with caller.begin() as connection:
        enqueue(connection, meter.job, queue="nobody's")
        enqueue(connection, meter.job, queue="nobody's")
    insert = ("insert execution", "insert payload")
    kept = ("select execution",)
    assert meter.said == [(*insert, *insert, *kept)]


def test_a_plain_task_that_is_enqueued_costs_one_commit_when_it_was_sent(meter: Meter, caller: Engine):
    plain = meter.app.signature("plain")
    with caller.begin() as connection:
        enqueue(connection, plain, queue="nobody's")
        enqueue(connection, plain, queue="nobody's")
    assert meter.said == [("insert outbox", "insert outbox", "select outbox"), ("delete outbox",)]


def test_recovery_asks_the_outbox_in_a_statement_that_it_has_anyway(meter: Meter):
    statements: list[str] = []
    event.listen(
        meter.database.engine, "before_cursor_execute", lambda c, k, statement, *_: statements.append(statement)
    )
    claims = Runtime.of(meter.app).recovery.claim(10)
    assert claims.outbox_ms is None
    due, following = [statement for statement in statements if "durable_" in statement]
    assert "durable_outbox" not in due
    assert "durable_outbox" in following
