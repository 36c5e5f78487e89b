"""A hard time limit never makes endless runs: it ends the execution, or is counted where it must not."""

from __future__ import annotations

import pytest
from billiard.exceptions import TimeLimitExceeded

from celery_durable.store.records import State

from .arena import PATIENT, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]


def test_a_request_class_of_the_applications_own_changes_nothing(arena: Arena):
    arena.worker(durable=PATIENT)
    arena.send("limited", "limited_in_its_own_way")
    with pytest.raises(TimeLimitExceeded):
        arena.result("limited").get(timeout=60)
    arena.await_settled(["limited"])
    assert arena.row("limited").state is State.FAILED
    assert arena.ledger.count("body", execution="limited") == 1
    assert arena.ledger.count("timed out", execution="limited") == 1, "it is still the application's"


def test_a_task_that_is_not_to_fail_by_its_limit_is_parked_in_the_end(arena: Arena):
    worker = arena.worker(durable={**PATIENT, "durable_max_attempts": 2})
    arena.send("hopeless", "limited_each_time")
    arena.await_settled(["hopeless"])
    assert arena.row("hopeless").state is State.QUARANTINED
    assert arena.ledger.count("body", execution="hopeless") == 3
    assert "ran into its hard time limit 3 times (durable_max_attempts is 2)" in worker.log()
    assert len(arena.fired("hopeless", "before")) == 1
