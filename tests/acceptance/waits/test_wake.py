"""Who waits goes on at once, not when recovery happens to look."""

from __future__ import annotations

import pytest

from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]

#: By itself recovery looks once an hour.
SELDOM = {"durable_lease_timeout": 2, "durable_recovery_interval": 3600}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_recovery_is_told_of_a_short_sleep_and_the_resolver_sends_by_itself(arena: Arena, pool: str) -> None:
    arena.worker(durable=SELDOM, pool=pool)
    arena.send("nap-1", "nap", 0.3, "rested")
    assert arena.result("nap-1").get(timeout=60) == "rested"
    arena.send("approve-1", "approve")
    arena.keep("approve-1", "yes")
    assert arena.result("approve-1").get(timeout=60) == "yes"
    arena.send("race-1", "race", 0.3)
    assert arena.result("race-1").get(timeout=60) == "late"
