"""Time limits: what Celery calls failed stays failed, and what was done stays done."""

from __future__ import annotations

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")


@pytest.mark.databases("sqlite")
def test_a_soft_limit_is_an_exception_of_the_body(arena: Arena):
    worker = arena.worker(concurrency=2)
    arena.send("handled", "softly_limited", True)
    arena.send("escapes", "softly_limited", False)
    assert arena.result("handled").get(timeout=60) == "in time"
    with pytest.raises(SoftTimeLimitExceeded):
        arena.result("escapes").get(timeout=60)
    arena.await_settled(["handled", "escapes"])
    arena.outlast_leases(worker)
    for execution, state, after in (("handled", State.COMPLETED, 1), ("escapes", State.FAILED, 0)):
        assert (arena.row(execution).state, arena.row(execution).epoch) == (state, 1)
        assert arena.ledger.count("body", execution=execution) == 1
        assert [entry.name for entry in arena.journal(execution)] == ["before"] * 2 + ["after"] * 2 * after


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_hard_limit_fails_the_execution_for_good(arena: Arena, pool: str):
    worker = arena.worker(pool=pool)
    arena.send("limited", "limited")
    with pytest.raises(TimeLimitExceeded):
        arena.result("limited").get(timeout=60)
    arena.await_settled(["limited"])
    row = arena.row("limited")
    assert row.state is State.FAILED
    arena.outlast_leases(worker, pool=pool)
    assert arena.row("limited") == row
    assert arena.ledger.count("body", execution="limited") == 1
    assert len(arena.fired("limited", "before")) == 1
    # The body's clean-up: too late under prefork, where the execution has ended before its process hears of it.
    assert len(arena.fired("limited", "after")) == (1 if pool == "gevent" else 0)
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
