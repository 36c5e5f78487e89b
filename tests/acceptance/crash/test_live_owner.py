"""What lives is left alone by those who start beside it."""

from __future__ import annotations

import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

HELD = ["held-1", "held-2"]


def test_workers_that_start_take_nothing_from_one_that_runs(arena: Arena):
    """All with default settings. That the new ones do look is shown by what they take: an execution of a dead worker
    whose lease ran out.
    """
    lost = arena.worker(durable={}, name="lost")
    arena.send("orphan", "held")
    eventually(lambda: arena.ledger.count("holding", execution="orphan") == 1)
    lost.kill()
    arena.worker(durable={}, name="live", concurrency=len(HELD))
    for execution in HELD:
        arena.send(execution, "held")
    eventually(lambda: all(arena.ledger.count("holding", execution=one) for one in HELD))
    leases = {one: arena.row(one).lease_until for one in HELD}

    for name in ("second", "third"):
        arena.worker(durable={}, name=name, concurrency=len(HELD))
    assert arena.row("orphan").epoch == 1
    arena.lapse("orphan")
    eventually(lambda: arena.ledger.count("holding", execution="orphan") == 2, 60)

    for one in HELD:
        row = arena.row(one)
        assert (row.state, row.epoch, row.attempts) == (State.RUNNING, 1, 0)
        assert row.lease_until >= leases[one]
    arena.open_gate("release")
    arena.await_settled([*HELD, "orphan"])
    assert {arena.ledger.count("holding", execution=one) for one in HELD} == {1}
    for one in HELD:
        assert arena.result(one).get(timeout=30) == "released"
        assert len(arena.fired(one, "before")) == len(arena.fired(one, "after")) == 1
