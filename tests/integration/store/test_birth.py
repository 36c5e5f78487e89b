"""A first delivery is recorded with its first commit: who is first is decided there, and nobody runs twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_durable import DurableTask, Intent, LeaseLost, OnAmbiguous, StepDescriptor
from celery_durable.runtime import Runtime
from celery_durable.store import migrations
from celery_durable.store.records import Batch, Entry, EntryKind, Opened, OpenRequest, PayloadKind, State, StoredPayload
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab, everywhere
from tests.support.ledger import Ledger
from tests.support.wait import eventually

pytestmark = everywhere

ENVELOPE = StoredPayload(0, b"message")
RESULT = Entry("", 0, 0, EntryKind.RESULT, None, "step", payload=StoredPayload(0, b"1"))
CHARGE = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)


def open_(lab: Lab, owner: str) -> Any:
    return lab.runtime.ownership.open(OpenRequest("one", "job", owner, 0, lambda: ENVELOPE, fresh=True))


def batch(opened: Opened, *entries: Entry) -> Batch:
    return Batch(opened.fence, 1, entries, steps=len(entries), birth=opened.birth)


def test_there_is_no_row_before_the_first_commit_and_a_whole_one_after_it(lab: Lab) -> None:
    opened = open_(lab, "first")
    assert lab.operations.find() == []
    assert lab.runtime.journal.append([batch(opened, RESULT)]) == set()
    row = lab.execution()
    assert (row.pk, row.epoch) == opened.fence
    assert (row.state, row.owner, row.steps, row.attempts) == (State.RUNNING, "first", 1, 0)
    # PostgreSQL reads its clock once for each column.
    assert row.lease_until > row.created_at
    assert row.wake_at is not None
    assert abs(row.wake_at - row.lease_until) < 15_000
    assert lab.entries() == ["0 RESULT step"]
    assert lab.operations.payload(row.pk, PayloadKind.ENVELOPE) == ENVELOPE


@pytest.mark.parametrize("end", ["finish", "suspend", "release", "park"])
def test_an_end_that_is_the_first_commit_leaves_what_any_end_leaves(lab: Lab, end: str) -> None:
    ownership = lab.runtime.ownership
    ends: dict[str, Any] = {
        "finish": lambda b: ownership.finish(b, "o", State.COMPLETED, StoredPayload(0, b"value")),
        "suspend": lambda b: ownership.suspend(b, "o", delay_ms=9000, retries=1, envelope=StoredPayload(0, b"next")),
        "release": lambda b: ownership.release(b, "o", attempts=1),
        "park": lambda b: ownership.park(b, "o", State.AMBIGUOUS, StoredPayload(0, b"why")),
    }

    def left(name: str, fresh: bool) -> tuple[Any, ...]:
        answer = ownership.open(OpenRequest(name, "job", "o", 0, lambda: ENVELOPE, fresh=fresh))
        assert isinstance(answer, Opened)
        ends[end](batch(answer, RESULT))
        row = lab.execution(name)
        payloads = [lab.operations.payload(row.pk, kind) for kind in PayloadKind]
        waits = None if row.wake_at is None else round((row.wake_at - row.updated_at) / 1000)
        facts = (row.state, row.epoch, row.lease_until, row.attempts, row.retries, row.steps, row.sends, row.generation)
        return facts, waits, payloads, lab.entries(name)

    assert left("at once", False) == left("later", True)


def test_of_two_first_deliveries_the_first_to_commit_goes_on(lab: Lab) -> None:
    first, second = open_(lab, "first"), open_(lab, "second")
    journal = lab.runtime.journal
    # In one transaction with somebody else, who must not suffer.
    other = lab.runtime.ownership.open(OpenRequest("two", "job", "other", 0, lambda: ENVELOPE))
    assert journal.append([batch(second, RESULT)]) == set()
    assert journal.append([batch(first, RESULT), batch(other, RESULT)]) == {first.fence}
    assert lab.entries("two") == ["0 RESULT step"]
    for _ in range(2):
        with pytest.raises(LeaseLost):
            lab.runtime.ownership.finish(batch(first, RESULT), "first", State.COMPLETED, None)
    assert lab.execution().owner == "second"
    assert lab.entries() == ["0 RESULT step"]


def test_what_is_known_is_judged_before_anything_runs(lab: Lab) -> None:
    opened = open_(lab, "first")
    lab.runtime.ownership.finish(batch(opened, RESULT), "first", State.COMPLETED, StoredPayload(0, b"value"))
    assert open_(lab, "second").outcome == StoredPayload(0, b"value")


def test_many_owners_at_once_run_one_guarded_step(database: JournalDatabase, ledger: Ledger) -> None:
    """Bodies that begin at the same moment, in threads of a worker: one of them gets to its guarded step."""
    app = Celery("birth", broker="memory://", backend="cache+memory://", set_as_current=False)
    # Queues in memory are the process's: in a common one there may be messages of other tests.
    app.conf.update({**database.conf, "task_default_queue": f"birth-{database.kind}"})
    app.conf.update(durable_flush_interval=20.0, durable_recovery_interval=20.0)
    migrations.upgrade(database.url)
    gate = threading.Barrier(4)

    def job(task: DurableTask) -> str:
        gate.wait(30)
        return task.durable.step(CHARGE, lambda: ledger.fire("charge") or "charged")

    task = app.task(job, base=DurableTask, bind=True, name="job", shared=False)
    with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="ERROR"):
        results = [task.apply_async(task_id=f"one-{database.kind}") for _ in range(4)]
        assert results[0].get(timeout=60) == "charged"
        eventually(lambda: gate.n_waiting == 0)
    assert ledger.names() == ["charge"]
    Runtime.of(app).end()
