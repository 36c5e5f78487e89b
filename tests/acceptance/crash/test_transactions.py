"""Transactional steps whose process is killed, or stopped until its lease is somebody else's: rows exactly once."""

from __future__ import annotations

import psutil
import pytest
import sqlalchemy as sa

from celery_durable.store.records import State
from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

from .app import bookings
from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

#: Where a process is killed.
POINTS = (
    "step.before_effect",
    "effect.after",
    "step.after_effect",
    "transaction.before_commit",
    "transaction.after_commit",
    "step.after_result",
    "task.after_outcome",
)


@pytest.fixture(params=["booking", "booking_async"])
def task(request: pytest.FixtureRequest, arena: Arena) -> str:
    """A task with a transactional step: a plain function, or a coroutine function."""
    if request.param == "booking_async":
        driver = {"sqlite": "aiosqlite", "postgresql": "psycopg", "mysql": "asyncmy"}[arena.database.kind]
        pytest.importorskip(driver, reason="no driver for asyncio")
    return str(request.param)


def expect_once(arena: Arena, executions: list[str], follows: list[str]) -> dict[str, int]:
    """Each has written its row once, and what it sent with it was done; who wrote which row."""
    arena.await_settled([*executions, *follows])
    for one in executions:
        assert arena.row(one).state is State.COMPLETED
        assert arena.result(one).get(timeout=30) == 7
        assert len(arena.fired(one, "before")) == len(arena.fired(one, "after")) == 1
    with arena.database.engine().connect() as connection:
        rows = connection.execute(sa.select(bookings.c.execution, bookings.c.pid)).all()
    assert sorted(row.execution for row in rows) == sorted(executions)
    assert {row.id for row in arena.operations.find(limit=100)} == {*executions, *follows}
    return {row.execution: row.pid for row in rows}


def test_a_killed_process_leaves_its_rows_once(arena: Arena, task: str):
    bookings.create(arena.database.engine())
    for point in POINTS:
        arena.arm(point, point, step="" if point.startswith("task.") else "edge")
    arena.worker(concurrency=4)
    for point in POINTS:
        arena.send(point, task, 7, True)
    expect_once(arena, list(POINTS), [f"{point}-follows" for point in POINTS])
    assert arena.unreached() == []


def pause_outside_transactions(arena: Arena, worker: WorkerProcess, stopped: list[int]) -> None:
    """Pause a worker of which these processes stand still already. On SQLite, where nobody else could go on, not while
    its recovery is in the middle of a transaction.
    """
    if arena.database.kind != "sqlite":
        worker.pause()
        return
    main = psutil.Process(worker.pid)
    others = [one for one in [main, *main.children(recursive=True)] if one.pid not in stopped]
    engine = arena.database.engine(connect_args={"timeout": 0.5})

    def paused() -> bool:
        for one in others:
            one.suspend()
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            return True
        except sa.exc.OperationalError:
            for one in others:
                one.resume()
            return False

    eventually(paused, 60, "the file is locked by a process that stands still", interval=0.05)


def test_a_process_that_wakes_after_its_lease_was_taken_writes_no_row(arena: Arena, task: str):
    bookings.create(arena.database.engine())
    stops = ["step.before_effect", "effect.after", "step.after_effect", "transaction.before_commit"]
    if arena.database.kind == "sqlite":
        # There, who is stopped inside a transaction stops all the others.
        stops = stops[:1]
    for point in stops:
        arena.arm(point, point, action="stop", step="edge")
    first = arena.worker(name="first", concurrency=len(stops))
    for point in stops:
        arena.send(point, task, 7, False)

    def zombies() -> list[int]:
        children = [psutil.Process(pid) for pid in first.children()]
        return [child.pid for child in children if child.status() == psutil.STATUS_STOPPED]

    eventually(lambda: len(zombies()) == len(stops), 60)
    stopped = zombies()
    pause_outside_transactions(arena, first, stopped)
    arena.worker(name="second", concurrency=2)
    if "transaction.before_commit" in stops:
        # It holds the lock of its execution's row: nobody can take that over before it has gone.
        open_ones = [one for one in stops if one != "transaction.before_commit"]
        arena.await_settled(open_ones)
        assert arena.row("transaction.before_commit").epoch == 1
    else:
        arena.await_settled(stops)
    first.resume()
    wrote = expect_once(arena, stops, [])
    assert {one for one, pid in wrote.items() if pid in stopped} <= {"transaction.before_commit"}
