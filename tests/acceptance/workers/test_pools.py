"""Each pool runs durable bodies, and goes on with those of a killed worker."""

from __future__ import annotations

import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

POOLS = ["prefork", "threads", "gevent", "solo"]

#: Task and its arguments -> what it returns, and how often each of its steps is called.
BODIES = {
    ("retrying",): ([0, 2, 4], 3),
    ("failing_once",): (2, 1),
    ("coroutine", 4): ([0, 2, 4, 6], 4),
    ("branching", 4): ([0, 2, 4, 6], 4),
}


@pytest.mark.databases("sqlite", "postgresql")
@pytest.mark.parametrize("pool", POOLS)
def test_steps_retries_coroutines_and_branches_run_on(arena: Arena, pool: str):
    arena.worker(pool=pool, concurrency=2, conf={"worker_prefetch_multiplier": 4})
    for task, *args in BODIES:
        arena.send(task, task, *args)
    for (task, *_), (value, steps) in BODIES.items():
        assert arena.result(task).get(timeout=60) == value
        called = [entry["name"] for entry in arena.ledger.entries(execution=task) if entry["name"] != "body"]
        assert len(called) == len(set(called)) == steps, called
    arena.await_settled([task for task, *_ in BODIES])
    assert arena.row("retrying").retries == 2
    assert arena.row("failing_once").retries == 1


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("pool", POOLS)
def test_another_worker_goes_on_with_what_a_killed_one_had_on(arena: Arena, pool: str):
    lost = arena.worker(pool=pool)
    arena.send("held-1", "held")
    arena.await_body("held-1")
    heir = arena.worker(pool=pool)
    lost.kill()
    pid = arena.await_body("held-1", 2)
    assert pid in (heir.pid, *heir.children())

    arena.open_gate("release")
    assert arena.result("held-1").get(timeout=60) == "released"
    arena.await_settled(["held-1"])
    row = arena.row("held-1")
    assert (row.state, row.epoch, row.attempts) == (State.COMPLETED, 2, 1)
    [before], [after] = arena.fired("held-1", "before"), arena.fired("held-1", "after")
    assert before["pid"] != pid == after["pid"]
    # Nobody is left to find the message that Redis still has of the killed one; the heir is free for others.
    arena.send("next", "held")
    assert eventually(lambda: arena.result("next").ready(), 60)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("pool", POOLS)
def test_a_body_that_raises_what_ends_programs_does_not_end_its_worker_and_is_quarantined(arena: Arena, pool: str):
    """SystemExit is left to the pool in a stop only; here it counts as the death of an owner."""
    limit = {"durable_max_attempts": 1, "durable_recovery_interval": 0.2}
    worker = arena.worker(pool=pool, durable=limit, conf={"worker_prefetch_multiplier": 4})
    for execution in ("SystemExit", "CancelledError"):
        arena.send(execution, "quits", execution)
    arena.await_settled(["SystemExit", "CancelledError"])
    pids = {entry["pid"] for entry in arena.ledger.entries("body")}
    for execution in ("SystemExit", "CancelledError"):
        assert arena.row(execution).state is State.QUARANTINED
        assert arena.result(execution).state == "QUARANTINED"
        assert "durable resume" in arena.result(execution).info["reason"]
        assert arena.ledger.count("body", execution=execution) == 2
        assert len(arena.fired(execution, "before")) == 1

    arena.open_gate("release")
    arena.send("next", "held")
    assert arena.result("next").get(timeout=60) == "released"
    pids.add(arena.fired("next", "after")[0]["pid"])
    assert worker.alive
    assert len(pids) == 1, "a process of the pool was lost"
