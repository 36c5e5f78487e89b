"""A worker that is stopped lets its bodies end, or gives them back: then others go on at once.

All leases last for minutes, so that nothing but an early return explains that an execution goes on.
"""

from __future__ import annotations

import signal
from typing import Any

import celery
import pytest

from celery_durable.store.records import State
from tests.support.worker import WorkerProcess

from .arena import PATIENT, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]

#: Before that, a cold stop of these pools ends when the bodies do.
interrupts = pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery interrupts bodies of this pool since 5.5")
soft_stop = pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery has soft stops since 5.5")


def _begin(arena: Arena, **options: Any) -> tuple[WorkerProcess, WorkerProcess]:
    """A worker in the middle of a body, and its heir."""
    first = arena.worker(durable=PATIENT, **options)
    arena.send("held-1", "held")
    arena.await_body("held-1")
    return first, arena.worker(durable=PATIENT, pool=options.get("pool", "prefork"))


def _expect_heir(arena: Arena, heir: WorkerProcess) -> None:
    """The heir goes on where the first one was interrupted."""
    pid = arena.await_body("held-1", 2)
    assert pid in (heir.pid, *heir.children())
    assert not arena.result("held-1").ready(), "Celery was told that it has ended"
    arena.open_gate("release")
    arena.await_settled(["held-1"])
    row = arena.row("held-1")
    assert (row.state, row.epoch, row.attempts) == (State.COMPLETED, 2, 0)
    assert arena.result("held-1").get(timeout=30) == "released"
    [before], [after] = arena.fired("held-1", "before"), arena.fired("held-1", "after")
    assert before["pid"] != pid == after["pid"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_warm_stop_lets_bodies_end(arena: Arena, pool: str):
    first, heir = _begin(arena, pool=pool)
    first.kill(signal.SIGTERM)
    # It takes no more, but what it has is not given away.
    first.await_log("worker: Warm shutdown")
    arena.send("held-2", "held")
    arena.await_body("held-2")
    arena.open_gate("release")
    assert first.wait(60) == 0
    arena.await_settled(["held-1", "held-2"])
    assert heir.alive
    for execution in ("held-1", "held-2"):
        row = arena.row(execution)
        assert (row.state, row.epoch) == (State.COMPLETED, 1)
        assert arena.result(execution).get(timeout=30) == "released"
        [before], [after] = arena.fired(execution, "before"), arena.fired(execution, "after")
        assert before["pid"] == after["pid"]


@pytest.mark.parametrize(
    "pool", ["prefork", pytest.param("gevent", marks=interrupts), pytest.param("solo", marks=interrupts)]
)
def test_a_cold_stop_gives_executions_back(arena: Arena, pool: str):
    first, heir = _begin(arena, pool=pool)
    first.kill(signal.SIGQUIT)
    _expect_heir(arena, heir)
    first.wait(60)


@interrupts
def test_a_stopped_worker_sends_what_its_own_recovery_has_claimed(arena: Arena):
    """The last one to stop has nobody beside it, and its process ends a moment after it gave its execution back."""
    first = arena.worker(pool="solo", durable=PATIENT)
    arena.send("held-1", "held")
    arena.await_body("held-1")
    arena.open_gate("slow")
    first.kill(signal.SIGQUIT)
    first.wait(60)
    assert arena.ledger.count("publishing", execution="held-1") == 1
    _expect_heir(arena, arena.worker(pool="solo", durable=PATIENT))


def test_threads_cannot_be_interrupted_so_their_bodies_end_in_a_cold_stop_too(arena: Arena):
    first, _ = _begin(arena, pool="threads")
    first.kill(signal.SIGQUIT)
    arena.open_gate("release")
    first.wait(60)
    arena.await_settled(["held-1"])
    assert (arena.row("held-1").state, arena.row("held-1").epoch) == (State.COMPLETED, 1)
    assert arena.result("held-1").get(timeout=30) == "released"
    assert len(arena.fired("held-1", "before")) == len(arena.fired("held-1", "after")) == 1


def test_a_second_signal_makes_a_warm_stop_a_cold_one(arena: Arena):
    first, heir = _begin(arena)
    first.kill(signal.SIGTERM)
    first.await_log("worker: Warm shutdown")
    first.kill(signal.SIGQUIT)
    _expect_heir(arena, heir)


def test_sigterm_can_be_made_the_cold_stop(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    first, heir = _begin(arena)
    first.kill(signal.SIGTERM)
    _expect_heir(arena, heir)


@soft_stop
def test_a_soft_stop_waits_for_bodies_and_then_gives_them_back(arena: Arena):
    soft = {"worker_soft_shutdown_timeout": 120}
    first, heir = _begin(arena, concurrency=2, conf=soft)
    arena.send("quick", "held", "now")
    arena.await_body("quick")
    first.kill(signal.SIGQUIT)
    first.await_log("Initiating Soft Shutdown")
    arena.open_gate("now")
    assert arena.result("quick").get(timeout=60) == "released"
    assert arena.row("held-1").epoch == 1
    # Asked once more it has no more patience with bodies. (Celery sits its timeout out all the same.)
    first.kill(signal.SIGQUIT)
    _expect_heir(arena, heir)
    assert arena.row("quick").epoch == 1


@soft_stop
def test_a_soft_stop_has_an_end(arena: Arena):
    first, heir = _begin(arena, conf={"worker_soft_shutdown_timeout": 1})
    first.kill(signal.SIGQUIT)
    _expect_heir(arena, heir)
