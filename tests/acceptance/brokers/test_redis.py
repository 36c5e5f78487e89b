"""Redis delivers again what was not acknowledged in time, and forgets everything when it is flushed."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from celery_durable import outbox_batch
from celery_durable.runtime import Runtime
from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql")]

#: Seconds after which Redis takes a message for lost.
IMPATIENT = 1


def impatient(arena: Arena) -> dict[str, object]:
    return {"broker_transport_options": {**arena.broker.transport_options, "visibility_timeout": IMPATIENT}}


def test_a_message_that_comes_again_while_its_task_runs_is_dropped(arena: Arena):
    first = arena.worker(conf=impatient(arena), name="first")
    arena.send("held-1", "held")
    arena.await_bodies(["held-1"])
    held_since = arena.ledger.entries("body")[0]["at"]
    eventually(lambda: _age(held_since) > 2 * IMPATIENT)
    # A worker that starts puts back what is overdue.
    second = arena.worker(conf=impatient(arena), name="second")
    second.await_log("a message of tests.acceptance.brokers.app.held[held-1] is dropped: another owner runs it")
    arena.open_gate("release")
    arena.expect_once(["held-1"], "work", "after", "body")
    row = arena.row("held-1")
    assert (row.epoch, row.attempts) == (1, 0)

    # One that comes when all is over finds that Celery knows already.
    for _ in range(2):
        arena.send("held-1", "held")
    arena.await_empty_broker()
    eventually(lambda: f"{first.log()}{second.log()}".count("is dropped: it has ended") == 2)
    assert arena.ledger.count("body") == 1
    assert arena.row("held-1") == row
    assert arena.result("held-1").get(timeout=30) == "released"


def _age(since: float) -> float:
    return time.time() - since


def test_a_retry_that_is_due_after_the_visibility_time_out_runs_once(arena: Arena):
    first = arena.worker(conf=impatient(arena), name="first")
    arena.send("later-1", "later", 8 * IMPATIENT)
    arena.await_bodies(["later-1"])
    since = arena.ledger.entries("body")[0]["at"]
    eventually(lambda: _age(since) > 2 * IMPATIENT)
    # Now one of the two gets a copy of the message that the first one keeps until it is due.
    second = arena.worker(conf=impatient(arena), name="second")
    eventually(lambda: f"{first.log()}{second.log()}".count("later[later-1] received") == 3)
    arena.expect_once(["later-1"], "work")
    arena.await_empty_broker()
    assert arena.ledger.count("body") == 2
    assert arena.result("later-1").get(timeout=30) == 1


ORDERS = [f"held-{number}" for number in range(6)]
BEGUN = 2


@pytest.mark.parametrize("outbox", [False, True], ids=["plain", "outbox"])
def test_a_flushed_broker_loses_nothing_that_was_accepted(arena: Arena, outbox: bool):
    """Accepted is what has begun, and with the outbox what was published."""
    held = arena.publisher(durable_outbox=outbox).tasks[f"{APP}.held"]
    worker = arena.worker(concurrency=BEGUN)
    for order in ORDERS:
        held.apply_async(task_id=order)
    eventually(lambda: arena.ledger.count("body") == BEGUN)
    begun = {entry["execution"] for entry in arena.ledger.entries("body")}
    arena.await_started(sorted(begun))
    arena.broker.flush()
    worker.crash()

    arena.worker(concurrency=BEGUN)
    arena.open_gate("release")
    accepted = ORDERS if outbox else sorted(begun)
    arena.expect_once(accepted, "work", "after")
    assert {row.id for row in arena.operations.find(limit=100)} == set(accepted)
    for order in accepted:
        assert arena.result(order).get(timeout=30) == "released"


def test_what_is_published_while_the_broker_is_down_runs_when_it_is_back(arena: Arena):
    if arena.broker.server is None:
        pytest.skip("this Redis belongs to somebody else and cannot be stopped")
    # Celery asks its result backend before it publishes, which is the same server here.
    publisher = arena.publisher(durable_outbox=True, task_ignore_result=True)
    arena.open_gate("release")
    arena.broker.server.stop()
    result = publisher.tasks[f"{APP}.held"].apply_async(task_id="held-1")
    assert result.id == "held-1"
    assert arena.row("held-1").state is State.PENDING
    arena.broker.server.start()
    arena.worker()
    arena.expect_once(["held-1"], "work", "after")


def test_a_batch_is_recorded_with_one_commit(arena: Arena):
    publisher = arena.publisher(durable_outbox=True)
    add = publisher.tasks[f"{APP}.add"]
    engine = Runtime.of(publisher).database.engine
    commits: list[sa.Connection] = []
    event.listen(engine, "commit", commits.append)
    batch = [f"add-{number}" for number in range(20)]
    with outbox_batch():
        for number, execution in enumerate(batch):
            add.apply_async((number, 1), task_id=execution)
        assert arena.operations.find(limit=100) == []
        assert not commits
    assert len(commits) == 1
    # The broker loses what it was given; the rows are enough.
    arena.broker.flush()
    arena.worker(concurrency=2)
    arena.expect_once(batch, "work")
    assert [arena.result(one).get(timeout=30) for one in batch] == [number + 1 for number in range(20)]


def test_a_batch_that_is_left_by_an_exception_publishes_nothing(arena: Arena):
    add = arena.publisher(durable_outbox=True).tasks[f"{APP}.add"]

    def fail() -> None:
        with outbox_batch():
            add.apply_async((1,), task_id="add-1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    add.apply_async((2,), task_id="add-2")
    arena.worker()
    arena.expect_once(["add-2"], "work")
    arena.await_empty_broker()
    assert [row.id for row in arena.operations.find(limit=100)] == ["add-2"]
