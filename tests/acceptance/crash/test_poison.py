"""An execution that kills every process which runs it."""

from __future__ import annotations

import pytest

from celery_durable.store.records import State

from .arena import LEASE, Arena

pytestmark = pytest.mark.brokers("redis")

ATTEMPTS = 3


@pytest.mark.databases("sqlite", "postgresql")
def test_a_poison_execution_is_quarantined_and_goes_on_once_it_is_repaired(arena: Arena):
    limit = {"durable_lease_timeout": LEASE, "durable_recovery_interval": 0.2, "durable_max_attempts": ATTEMPTS}
    worker = arena.worker(durable=limit)
    arena.send("poison-1", "poison")
    arena.await_settled(["poison-1"])

    # Its first run, and as many take-overs as are allowed; and one more where it died before it had a row.
    swallowed = arena.ledger.count("swallowed", execution="poison-1")
    assert swallowed in (1 + ATTEMPTS, 2 + ATTEMPTS)
    row = arena.row("poison-1")
    assert row.state is State.QUARANTINED
    assert row.attempts == ATTEMPTS
    result = arena.result("poison-1")
    assert result.state == "QUARANTINED"
    assert "celery durable resume poison-1" in result.info["reason"]
    [told] = arena.ledger.entries("parked")
    assert (told["execution"], told["state"]) == ("poison-1", "quarantined")
    assert told["reason"] == result.info["reason"]
    [record] = [line for line in worker.log().splitlines() if "poison[poison-1] is parked as quarantined" in line]
    assert ": ERROR/" in record

    # The worker is as good as before, and the parked one is left alone.
    arena.send("cell-1", "cell", "RERUN")
    arena.await_settled(["cell-1"])
    assert arena.ledger.count("swallowed") == swallowed

    # Resumed without a repair it has a fresh count of attempts, and no more.
    arena.operations.resume("poison-1")
    arena.await_settled(["poison-1"])
    assert arena.row("poison-1").state is State.QUARANTINED
    assert arena.ledger.count("swallowed") == swallowed + 1 + ATTEMPTS

    arena.open_gate("repaired")
    arena.operations.resume("poison-1")
    arena.await_settled(["poison-1"])
    assert arena.row("poison-1").state is State.COMPLETED
    assert result.get(timeout=30) == "survived"
    assert len(arena.fired("poison-1", "before")) == 1
    assert len(arena.fired("poison-1", "after")) == 1
