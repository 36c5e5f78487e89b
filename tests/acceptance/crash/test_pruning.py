"""Pruning beside workers that run, retry and die; and pruning that is killed itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_durable.common.faults import FAULT_VARIABLE
from celery_durable.retention.pruner import Pruner
from celery_durable.retention.rules import Rules
from celery_durable.store import RetentionStore
from celery_durable.store.records import FINAL_STATES, State
from tests.support.conf import conf_env
from tests.support.history import SECOND, History
from tests.support.wait import eventually

from .arena import APP, LEASE, Arena

ROOT = Path(__file__).resolve().parents[3]
DAY = 86_400 * SECOND


@contextmanager
def pruning(arena: Arena) -> Iterator[None]:
    """Somebody prunes whatever has ended, without a pause."""
    store = RetentionStore(arena._store, namespace=arena.namespace)
    stopping = threading.Event()
    failures: list[BaseException] = []

    def prune() -> None:
        pruner = Pruner(store, Rules(ages=dict.fromkeys(FINAL_STATES, 0)))
        try:
            while not stopping.wait(0.01):
                arrived = [0]
                while pruner.walk(arrived[-1], 1 << 62, {}, arrived.append):
                    pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    assert failures == []


@pytest.mark.brokers("redis")
@pytest.mark.databases("postgresql", "mysql")
def test_executions_that_run_and_replay_beside_it_lose_nothing(arena: Arena):
    cells = [f"cell-{number}" for number in range(12)]
    settings = {"durable_lease_timeout": LEASE, "durable_recovery_interval": 0.05, "durable_retention": 0}
    worker = arena.worker(durable=settings, concurrency=2)
    arena.send("held", "held")
    for number, cell in enumerate(cells):
        if number % 2:
            arena.arm(cell, "effect.after", step="edge")
        arena.send(cell, "cell", "asks")
    with pruning(arena):
        arena.await_settled(cells)
        eventually(lambda: all(arena.row(cell).pruned_at for cell in cells), 60)
        # Late duplicates of all of them.
        before = worker.log().count("is dropped: it has ended (state completed)")
        for cell in cells:
            arena.send(cell, "cell", "asks")
        eventually(lambda: worker.log().count("is dropped: it has ended (state completed)") >= before + 12, 60)
        assert arena.row("held").state is State.RUNNING
        arena.open_gate("release")
        arena.await_settled(["held"])
    assert arena.unreached() == []
    assert arena.result("held").get(timeout=30) == "released"
    for number, cell in enumerate(cells):
        assert arena.result(cell).get(timeout=30) == ("told" if number % 2 else "live")
        assert [len(arena.fired(cell, step)) for step in ("before", "edge", "after")] == [1, 1, 1]
        assert arena.journal(cell) == []


@pytest.mark.brokers("redis")
@pytest.mark.databases("sqlite", "postgresql")
def test_a_worker_prunes_by_itself(arena: Arena):
    history = History(arena._store, arena.namespace)
    history.add("old", ended=2 * DAY)
    history.add("young", ended=DAY // 2)
    history.add("forgotten", ended=20 * DAY, pruned_at=history.now - 8 * DAY, steps=0)
    worker = arena.worker(durable={"durable_retention": DAY / SECOND, "durable_recovery_interval": 0.1})
    worker.await_log("1 execution(s) were pruned, 1 tombstone(s) removed")
    assert (history.whole(), history.tombstones(), history.orphans()) == (["young"], ["old"], 0)


@pytest.mark.brokers("filesystem")
def test_pruning_that_is_killed_leaves_nothing_half(arena: Arena, tmp_path: Path):
    history = History(arena._store, arena.namespace)
    names = [f"short-{number}" for number in range(5)]
    history.add(*names, ended=3 * DAY)
    history.add("long", ended=2 * DAY, steps=6000)
    history.add("forgotten", ended=20 * DAY, pruned_at=1, steps=0)

    def prune(fault: str = "") -> int:
        command = [sys.executable, "-m", "celery", "-A", APP, "durable", "prune", "--older-than", "1d"]
        env = {**os.environ, **conf_env(arena.broker.conf, arena.database.conf), FAULT_VARIABLE: fault}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=120).returncode

    assert prune("forget.before_commit=kill") == -signal.SIGKILL
    assert history.tombstones() == ["forgotten"]
    assert prune("prune.before_commit=kill") == -signal.SIGKILL
    assert history.whole() == ["long", *names]
    assert {sum(history.rows(name).values()) for name in names} == {5}
    # In the middle of a long one.
    assert prune("prune.before_slice=kill:2") == -signal.SIGKILL
    assert history.tombstones() == ["long", *names]
    assert 0 < history.rows("long")["journal"] < 6000
    assert prune() == 0
    assert history.tombstones() == ["long", *names]
    assert [history.rows(name) for name in history.tombstones()] == [{}] * 6
    assert history.orphans() == 0
