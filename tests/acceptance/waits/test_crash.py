"""SIGKILL at every edge of a wait, on every database: what waits goes on, and nothing is done twice.

All executions run at once on one worker, each with a fault of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from celery_durable.store.records import State
from tests.conftest import BROKERS, DATABASES, _use
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory

from .arena import Arena

# The first test of a database waits for all cells.
pytestmark = [pytest.mark.brokers("redis"), pytest.mark.timeout(240)]

#: Seconds, far longer than a body takes from its step to its suspension: where nothing but time ends the wait, a body
#: that is slower than this finds it over and is never suspended.
LONG = 10.0
#: Task, its arguments, what it returns, whether somebody has to keep a promise.
BODIES: dict[str, tuple[str, tuple[Any, ...], Any, bool]] = {
    "nap": ("nap", (LONG, "rested"), "rested", False),
    "approve": ("approve", (), "yes", True),
    "race": ("race", (LONG,), "late", False),
    "branches": ("branches", (LONG,), ["slept", "yes", "worked"], True),
    "coroutine": ("coroutine", (LONG,), ["yes"], True),
}
WAIT = ["wait.before_arm", "wait.before_suspend", "wait.after_suspend", "wait.woken"]
#: Only where nothing but time ends the wait: whoever keeps a promise sends the message himself.
TIME = ["recovery.after_claim"]
PROMISE = ["promise.before_create", "promise.after_create"]
EDGES = {
    "nap": [*WAIT, *TIME, "task.after_open 2"],
    "approve": [*PROMISE, *WAIT],
    "race": [*PROMISE, *WAIT, *TIME],
    "branches": WAIT,
    "coroutine": WAIT,
}
RESOLVER = ["promise.before_resolve", "promise.after_resolve"]


class Cell(NamedTuple):
    body: str
    point: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.body}-{self.point}"


CELLS = [Cell(body, *(edge.split() if " " in edge else (edge,))) for body, edges in EDGES.items() for edge in edges]


@pytest.fixture(scope="module")
def settled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """The arena after all have come to their end."""
    folder = tmp_path_factory.mktemp("arena")
    workers = WorkerFactory(tmp_path_factory.mktemp("workers"))
    with _use(DATABASES, request.param).lend(folder) as database, _use(BROKERS, "redis").lend(folder) as broker:
        arena = Arena(database, broker, workers, Ledger(folder / "ledger.jsonl"), folder)
        try:
            _play(arena)
            yield arena
        finally:
            workers.end()
            arena.close()


def _play(arena: Arena) -> None:
    for cell in CELLS:
        arena.arm(str(cell), cell.point, nth=int(cell.nth))
    worker = arena.worker(concurrency=4)
    for cell in CELLS:
        task, args, _, _ = BODIES[cell.body]
        arena.send(str(cell), task, *args)
    for point in RESOLVER:
        arena.send(point, "approve")
    for cell in CELLS:
        if BODIES[cell.body][3]:
            arena.await_asked(str(cell))
            arena.keep(str(cell), "yes")
    for point in RESOLVER:
        arena.await_asked(point)
        arena.keep_and_die(point, "yes", point)
        arena.keep(point, "yes")
    arena.await_settled([*map(str, CELLS), *RESOLVER], timeout=150)
    arena.await_empty_broker()
    assert worker.alive


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "settled" in metafunc.fixturenames:
        metafunc.parametrize("settled", ["sqlite", "postgresql", "mysql"], indirect=True, scope="module")


@pytest.mark.parametrize("name", [*map(str, CELLS), *RESOLVER])
def test_a_killed_process_loses_no_wait_and_repeats_nothing(settled: Arena, name: str) -> None:
    arena = settled
    assert arena.unreached(name) == []
    assert arena.row(name).state is State.COMPLETED
    body = name.partition("-")[0] if "-" in name else "approve"
    assert eventually(lambda: arena.result(name).get(timeout=10)) == BODIES[body][2]
    assert (len(arena.fired(name, "before")), len(arena.fired(name, "after"))) == (1, 1)
