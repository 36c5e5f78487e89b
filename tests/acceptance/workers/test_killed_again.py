"""Pool processes are killed again and again: their worker lives, and bodies go on where they were."""

from __future__ import annotations

import pytest

from .arena import PATIENT, Arena

#: Kills of each body's process. As long as two threads looked after the pool, they ended it sooner or later.
ROUNDS = 5
BODIES = ("one", "two", "three")


@pytest.mark.brokers("filesystem")
@pytest.mark.databases("sqlite")
def test_a_worker_without_an_event_loop_survives_the_death_of_its_pool_processes(arena: Arena):
    """Only processes that run a body are killed: billiard's pool does not outlive one that waits for a message."""
    arena.open_gate("watch pool")
    worker = arena.worker(
        # One more, for what is sent again; and what a dead process had does not count against it.
        concurrency=len(BODIES) + 1,
        durable={**PATIENT, "durable_max_attempts": 100},
        conf={"worker_prefetch_multiplier": 0},
    )
    for body in BODIES:
        arena.send(body, "held")
    for number in range(ROUNDS):
        for body in BODIES:
            worker.kill_child(pid=arena.await_body(body, number + 1))
            assert worker.alive
    for body in BODIES:
        arena.await_body(body, ROUNDS + 1)
    arena.open_gate("release")
    for body in BODIES:
        assert arena.result(body).get(timeout=60) == "released"
        assert len(arena.fired(body, "before")) == len(arena.fired(body, "after")) == 1
    assert worker.alive
    assert "crashed:" not in worker.log()
    # Two that replace processes at the same time take each other's unborn ones for dead.
    assert arena.ledger.count("maintains") == 1, arena.ledger.entries("maintains")
