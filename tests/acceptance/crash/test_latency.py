"""How long a take-over takes: printed, not judged (``pytest -s -k latency``).

The targets are a second for a killed pool process, and the lease timeout plus a second for a killed worker.
"""

from __future__ import annotations

import itertools
import statistics
import time

import pytest

from tests.support.wait import eventually

from .arena import LEASE, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite", "postgresql")]

#: Kills per figure.
PROCESSES, WORKERS = 5, 3


def _report(arena: Arena, what: str, seconds: list[float]) -> None:
    print(
        f"\n{what} on {arena.database.kind}: median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s "
        f"({len(seconds)} kills)"
    )


def test_latency_of_the_take_over_from_a_killed_process(arena: Arena):
    """From the moment of death to the next line of the body on another process, with default settings."""
    arena.worker(durable={"durable_max_attempts": PROCESSES})
    arena.send("poison-1", "poison")
    arena.await_settled(["poison-1"])
    starts = [entry["at"] for entry in arena.ledger.entries("swallowed")]
    _report(arena, "killed process, next start", [b - a for a, b in itertools.pairwise(starts)])
    assert len(starts) == 1 + PROCESSES


def test_latency_of_the_take_over_from_a_killed_worker(arena: Arena):
    """From the kill to the next line of the body in another worker."""
    seconds = []
    worker = arena.worker()
    arena.send("held-1", "held")
    for number in range(1, WORKERS + 1):
        eventually(lambda n=number: arena.ledger.count("holding") == n)
        heir = arena.worker()
        killed_at = time.time()
        worker.kill()
        eventually(lambda n=number: arena.ledger.count("holding") == n + 1, 60)
        seconds.append(arena.ledger.entries("holding")[-1]["at"] - killed_at)
        worker = heir
    _report(arena, f"killed worker with a lease of {LEASE:g} s, next start", seconds)
    arena.open_gate("release")
    arena.await_settled(["held-1"])
    assert arena.result("held-1").get(timeout=30) == "released"
    assert len(arena.fired("held-1", "before")) == len(arena.fired("held-1", "after")) == 1
