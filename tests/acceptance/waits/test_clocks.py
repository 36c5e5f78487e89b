"""Workers whose clocks are wrong: time is the database's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import LEASE, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql", "mysql")]

HOUR = 3600
#: How long they wait, in seconds.
WAIT = 6.0
#: Python reads it at the start of each process: what asks for the time gets another one.
WRONG = """
import time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {seconds}
time.time_ns = lambda: _time_ns() + {seconds} * 10**9
"""


def wrong(folder: Path, seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WRONG.format(seconds=seconds))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_by_an_hour_wakes_nobody_early_or_late(arena: Arena, tmp_path: Path, hours: int) -> None:
    env = wrong(tmp_path / "clock", hours * HOUR)
    first = arena.worker(env=env, concurrency=2)
    sent = time.monotonic()
    arena.send("nap", "nap", WAIT, "rested")
    arena.send("race", "race", WAIT)
    arena.send("impatient", "impatient", WAIT)
    arena.send("coroutine", "coroutine", WAIT)
    arena.send("later", "snooze", HOUR - 60)
    arena.await_suspended(5)
    arena.keep("coroutine", "word")
    assert time.monotonic() - sent < WAIT, "this machine is too slow for this test"
    # Its lease runs by the database's clock too: whoever comes after it waits for that, and for no hour.
    arena.arm("held", "wait.before_arm", action="stop")
    arena.send("held", "nap", 0.1)
    eventually(lambda: arena.unreached("held") == [] and arena.row("held").state is State.RUNNING)
    time.sleep(max(0, sent + WAIT - 0.5 - time.monotonic()))
    for name in ("nap", "race", "impatient", "coroutine"):
        assert arena.row(name).state is State.SUSPENDED, "woken early"
    results = {name: arena.result(name).get(timeout=30) for name in ("nap", "race", "impatient", "coroutine")}
    assert results == {"nap": "rested", "race": "late", "impatient": "nobody", "coroutine": ["word"]}
    first.crash()
    died = time.monotonic()
    arena.worker(env=wrong(tmp_path / "another", -hours * HOUR))
    arena.await_settled(["held"], timeout=60)
    assert time.monotonic() - died < LEASE + 30
    assert arena.row("later").state is State.SUSPENDED
    assert [len(arena.fired(name, "after")) for name in (*results, "held")] == [1, 1, 1, 1, 1]
    assert len(arena.fired("held", "before")) == 1
