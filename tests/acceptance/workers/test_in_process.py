"""Without worker processes, as people test: Celery's embedded worker, and eager mode. The journal is real."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_durable import DurableTask, step
from celery_durable.runtime import Runtime
from celery_durable.store import Operations
from celery_durable.store.records import EntryKind, Execution, State
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually

pytestmark = [pytest.mark.brokers("memory"), pytest.mark.databases("sqlite")]


class NotYet(Exception):
    """Something that a retry cures."""


class Place:
    """An application in this process, and what it has done."""

    def __init__(self, app: Celery, ledger: Ledger) -> None:
        self.app = app
        self.ledger = ledger

        @step
        def double(number: int) -> int:
            ledger.fire("double", number=number)
            return 2 * number

        @app.task(base=DurableTask, bind=True, max_retries=1, name="work", shared=False)
        def work(task: DurableTask, number: int, error: str = "") -> int:
            """Retried once, between two steps."""
            value = double(number)
            ledger.fire("body", id=task.request.id)
            if not task.request.retries:
                raise task.retry(countdown=0)
            if error:
                raise ValueError(error)
            return double(value)

        @app.task(base=DurableTask, name="later", shared=False)
        async def later(number: int) -> int:
            await asyncio.sleep(0)
            return double(number)

        @app.task(
            base=DurableTask, name="fails_once", shared=False, autoretry_for=(NotYet,), retry_kwargs={"countdown": 0}
        )
        def fails_once() -> int:
            value = double(1)
            if ledger.count("body") == 0:
                ledger.fire("body")
                raise NotYet
            return value

        self.work, self.later, self.fails_once = work, later, fails_once

    @property
    def operations(self) -> Operations:
        runtime = Runtime.of(self.app)
        return Operations(runtime.database, namespace=runtime.settings.namespace)

    def row(self, execution: str) -> Execution:
        return self.operations.get(execution)

    def results(self, execution: str) -> int:
        """How many steps of it are in the journal."""
        row = self.row(execution)
        return sum(e.kind == EntryKind.RESULT for e in self.operations.entries(row.pk, row.generation))


@pytest.fixture
def place(broker: MessageBroker, database: JournalDatabase, ledger: Ledger) -> Iterator[Place]:
    app = Celery("place", set_as_current=False)
    app.conf.update(broker.conf | database.conf)
    app.conf.update(durable_recovery_interval=0.1, durable_lease_timeout=2)
    yield Place(app, ledger)
    Runtime.of(app).end()
    app.close()


def test_the_embedded_worker_runs_and_recovers_executions(place: Place):
    # The result backend is one for all tests of this process, so ids are this test's own.
    first, second, failing = (f"embedded-{number}" for number in range(3))

    def failed(times: int) -> None:
        """Wait until the body of the failing execution has been run so often, and its failure is its outcome."""
        eventually(lambda: place.ledger.count("body", id=failing) == times, 60)
        eventually(lambda: place.row(failing).state is State.FAILED and place.row(failing).wake_at is None, 60)

    with start_worker(place.app, perform_ping_check=False):
        assert place.work.apply_async((1,), task_id=first).get(timeout=60) == 4
        assert place.later.apply_async((5,), task_id=second).get(timeout=60) == 10
        row = place.row(first)
        assert (row.state, row.epoch, row.retries) == (State.COMPLETED, 2, 1)
        assert [entry["number"] for entry in place.ledger.entries("double")] == [1, 2, 5]
        place.work.apply_async((10, "no"), task_id=failing)
        failed(2)
        # Its recovery service sends what an operator lets go on.
        place.operations.resume(failing)
        failed(3)
    assert place.ledger.count("double", number=10) == 1


@pytest.mark.parametrize("call", ["apply", "always_eager"])
def test_eager_runs_are_journaled_and_retry_in_place(place: Place, call: str):
    place.app.conf.task_always_eager = call == "always_eager"
    send: Any = place.work.apply if call == "apply" else place.work.apply_async
    assert send((1,), task_id="one").get() == 4
    row = place.row("one")
    assert (row.state, row.retries) == (State.COMPLETED, 1)
    assert row.wake_at is None, "recovery would look at what nobody has a message of"
    assert [entry["number"] for entry in place.ledger.entries("double")] == [1, 2]
    assert place.results("one") == 2

    # The same id once more is a duplicate: it is answered from the journal.
    assert send((1,), task_id="one").get() == 4
    assert place.ledger.count("body") == 2


def test_eager_failures_are_outcomes_and_propagate_where_celery_is_told_to(place: Place):
    place.app.conf.task_always_eager = True
    failed = place.work.apply_async((1, "no"), task_id="one")
    assert failed.state == "FAILURE"
    with pytest.raises(ValueError, match="no"):
        failed.get()
    assert place.row("one").state is State.FAILED
    place.app.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="no"):
        place.work.apply_async((1, "no"), task_id="one")


def test_eager_coroutines_and_automatic_retries(place: Place):
    assert place.later.apply((5,)).get() == 10
    assert place.fails_once.apply(task_id="one").get() == 2
    assert (place.row("one").state, place.row("one").retries) == (State.COMPLETED, 1)
    assert place.ledger.count("double", number=1) == 1


def test_an_eager_run_can_be_resumed_by_a_second_one(place: Place):
    """What happens to a body that is interrupted in a script: the same id goes on where it was."""

    @place.app.task(base=DurableTask, bind=True, name="interrupted", shared=False)
    def interrupted(task: DurableTask) -> str:
        task.durable.step("first", place.ledger.fire, "first")
        if place.ledger.count("interrupted") == 0:
            place.ledger.fire("interrupted")
            raise KeyboardInterrupt
        return "resumed"

    with pytest.raises(KeyboardInterrupt):
        interrupted.apply(task_id="one")
    assert (place.row("one").state, place.row("one").wake_at) == (State.PENDING, None)
    assert interrupted.apply(task_id="one").get() == "resumed"
    assert place.ledger.count("first") == 1
