"""A body that lasts longer than its lease keeps it, whatever its pool is busy with."""

from __future__ import annotations

import signal

import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_body_that_computes_without_a_pause_keeps_its_lease(arena: Arena, pool: str):
    arena.worker(pool=pool)
    arena.send("busy-1", "busy")
    arena.await_body("busy-1")
    arena.worker(pool=pool)
    arena.outlive_lease("busy-1")
    assert (arena.row("busy-1").state, arena.row("busy-1").epoch) == (State.RUNNING, 1)
    arena.open_gate("release")
    assert arena.result("busy-1").get(timeout=60) == "computed"
    assert arena.row("busy-1").epoch == 1
    assert arena.ledger.count("body") == len(arena.fired("busy-1", "after")) == 1


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_one_process_keeps_the_leases_of_all_that_it_runs(arena: Arena, pool: str):
    arena.worker(pool=pool, concurrency=2)
    arena.send("short", "held", "now")
    arena.send("long", "held")
    pids = {arena.await_body(execution) for execution in ("short", "long")}
    assert len(pids) == 1
    arena.worker(pool=pool)
    arena.open_gate("now")
    assert arena.result("short").get(timeout=60) == "released"
    arena.outlive_lease("long")
    arena.open_gate("release")
    assert arena.result("long").get(timeout=60) == "released"
    for execution in ("short", "long"):
        assert eventually(lambda one=execution: arena.row(one).state is State.COMPLETED)
        assert arena.row(execution).epoch == 1
        assert arena.ledger.count("body", execution=execution) == 1


def test_a_warm_stop_keeps_the_lease_of_a_body_that_lasts(arena: Arena):
    first = arena.worker()
    arena.send("held-1", "held")
    arena.await_body("held-1")
    arena.worker()
    first.kill(signal.SIGTERM)
    first.await_log("worker: Warm shutdown")
    arena.outlive_lease("held-1")
    assert arena.row("held-1").epoch == 1
    arena.open_gate("release")
    assert arena.result("held-1").get(timeout=60) == "released"
    assert arena.ledger.count("body") == 1
