"""Time limits: what Celery calls failed stays failed, and what was done stays done."""

from __future__ import annotations

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")


@pytest.mark.databases("sqlite")
def test_a_soft_limit_is_an_exception_of_the_body_and_a_hard_one_fails_it_from_outside(arena: Arena):
    worker = arena.worker(concurrency=3)
    arena.send("handled", "softly_limited", True)
    arena.send("escapes", "softly_limited", False)
    arena.send("limited", "limited")
    assert arena.result("handled").get(timeout=60) == "in time"
    with pytest.raises(SoftTimeLimitExceeded):
        arena.result("escapes").get(timeout=60)
    with pytest.raises(TimeLimitExceeded):
        arena.result("limited").get(timeout=60)
    executions = ["handled", "escapes", "limited"]
    arena.await_settled(executions)
    before = [arena.row(execution) for execution in executions]
    assert [row.state for row in before] == [State.COMPLETED, State.FAILED, State.FAILED]

    # Nothing of it is brought back.
    arena.outlast_leases(worker)
    assert [arena.row(execution) for execution in executions] == before
    for execution in executions:
        assert arena.ledger.count("body", execution=execution) == 1
        assert len(arena.fired(execution, "before")) == 1
        # The clean-up of the last one comes too late: its execution had ended before its process heard of it.
        assert len(arena.fired(execution, "after")) == (1 if execution == "handled" else 0)
    assert [arena.result(execution).state for execution in executions] == ["SUCCESS", "FAILURE", "FAILURE"]


@pytest.mark.databases("postgresql")
def test_a_hard_limit_under_gevent_ends_the_body_and_fails_the_execution_for_good(arena: Arena):
    worker = arena.worker(pool="gevent")
    arena.send("limited", "limited")
    with pytest.raises(TimeLimitExceeded):
        arena.result("limited").get(timeout=60)
    arena.await_settled(["limited"])
    row = arena.row("limited")
    assert row.state is State.FAILED
    arena.outlast_leases(worker, pool="gevent")
    assert arena.row("limited") == row
    assert arena.ledger.count("body", execution="limited") == 1
    # The limit is raised in the body, whose clean-up is still a part of it.
    assert len(arena.fired("limited", "before")) == len(arena.fired("limited", "after")) == 1
    assert arena.result("limited").state == "FAILURE"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_task_that_is_not_to_fail_by_its_limit_goes_on_where_it_was(arena: Arena, pool: str):
    arena.worker(pool=pool, conf={"worker_prefetch_multiplier": 4})
    arena.send("patient", "limited_each_time")
    eventually(lambda: arena.ledger.count("body", execution="patient") == 2, 60)
    arena.open_gate("release")
    arena.await_settled(["patient"])
    assert arena.row("patient").state is State.COMPLETED
    assert arena.result("patient").get(timeout=30) == "released"
    assert len(arena.fired("patient", "before")) == len(arena.fired("patient", "after")) == 1
