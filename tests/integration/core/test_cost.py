"""What each operation costs in statements and commits: exact numbers, the same on every database.

Wall time belongs into the benchmarks; a protocol that became more talkative shows here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import event

from celery_durable import DurableTask, Effect, Intent, OnAmbiguous, StepDescriptor
from celery_durable.runtime import Runtime
from celery_durable.store import migrations
from tests.conftest import DATABASES, _use
from tests.support.databases import JournalDatabase

GUARDED = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)
NAMED = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN, key=lambda n: f"order-{n}")
TWICE = StepDescriptor("twice", Effect.AT_LEAST_ONCE)

OPEN = ["insert execution", "insert payload", "commit"]
#: A flush that somebody waits for.
FLUSH = ["update execution", "insert journal", "commit"]
#: The end of a body that has buffered results.
FINISH = ["update execution", "insert journal", "insert payload", "commit"]
FINISH_EMPTY = ["update execution", "insert payload", "commit"]
#: A segment of 100 entries.
READ = ["select journal"]
#: A message that was sent again: the row is there.
REOPEN = ["select execution", "update execution", "commit"]


def double(number: int) -> int:
    return 2 * number


class Meter:
    """Runs bodies in a real worker and notes what their threads say to the database."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._body: Callable[..., Any] = lambda context: None

        def job(task: DurableTask) -> Any:
            return self._body(task.durable)

        self.job = app.task(job, base=DurableTask, bind=True, name="job", autoretry_for=(OSError,))
        self.job.default_retry_delay = 0
        self.database = Runtime.of(app).database
        self.said: list[str] = []
        event.listen(self.database.engine, "before_cursor_execute", self._on_statement)
        event.listen(self.database.engine, "commit", self._on_commit)

    def _on_statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        found = re.match(r"(?is)\s*(insert|update|delete|select).*?\bdurable_(\w+)", statement)
        if found:
            self._note(f"{found[1].lower()} {found[2]}")

    def _on_commit(self, connection: Any) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            self._note("commit")

    def _note(self, word: str) -> None:
        # The heartbeat and the recovery service work for all executions of a process together.
        if not threading.current_thread().name.startswith("durable-"):
            self.said.append(word)

    def cost(self, body: Callable[..., Any], **options: Any) -> list[str]:
        """What one delivery of a new execution says."""
        self._body = body
        self.said.clear()
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
        durable_flush_interval=20.0,  # only what somebody waits for is written
        durable_ack_timeout=5.0,
        durable_recovery_interval=25.0,
    )
    migrations.upgrade(database.url)
    meter = Meter(app)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        meter.cost(lambda context: None)  # whatever is done once per process
        yield meter
    Runtime.of(app).close()


def test_a_body_without_steps(meter: Meter):
    assert meter.cost(lambda context: 1) == OPEN + FINISH_EMPTY


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_plain_steps_cost_no_commit_of_their_own(meter: Meter, steps: int):
    def body(context: Any) -> int:
        return sum(context.step("double", double, n) for n in range(steps))

    assert meter.cost(body) == OPEN + FINISH


def test_a_guarded_step_costs_two_commits(meter: Meter):
    def body(context: Any) -> None:
        context.step(GUARDED, double, 1)
        context.step("double", double, 1)
        context.step(GUARDED, double, 2)

    assert meter.cost(body) == [*OPEN, *FLUSH * 4, *FINISH_EMPTY]


def test_a_guarded_step_with_a_key_of_its_own_looks_for_it_and_keeps_it(meter: Meter):
    claim = ["select guard", "update execution", "insert guard", "insert journal", "commit"]
    assert meter.cost(lambda context: context.step(NAMED, double, 7)) == [*OPEN, *claim, *FLUSH, *FINISH_EMPTY]


def test_plain_steps_before_a_guarded_one_share_its_commit(meter: Meter):
    def body(context: Any) -> None:
        for n in range(20):
            context.step("double", double, n)
            context.step(TWICE, double, n)
        context.step(GUARDED, double, 1)

    assert meter.cost(body) == [*OPEN, *FLUSH, *FLUSH, *FINISH_EMPTY]


def test_parallel_branches_cost_no_commit_of_their_own(meter: Meter):
    def body(context: Any) -> None:
        with context.parallel() as branches:
            for n in range(8):
                branches.step("double", double, n)

    assert meter.cost(body) == OPEN + FINISH


def test_a_retry_costs_one_commit_and_its_replay_reads_a_hundred_entries_at_a_time(meter: Meter):
    deliveries = []

    def body(context: Any) -> None:
        for n in range(250):
            context.step("double", double, n)
        deliveries.append(1)
        if len(deliveries) == 1:
            raise OSError("not yet")

    suspend = ["update execution", "insert journal", "insert payload", "commit"]
    patches, scopes = READ, READ
    # Two full segments and one that is not; the end of the journal needs no read.
    assert meter.cost(body) == [*OPEN, *suspend, *REOPEN, *patches, *READ * 3, *scopes, *FINISH_EMPTY]
