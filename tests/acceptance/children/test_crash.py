"""SIGKILL at every edge between parent and child, on every database: each child runs once, and each parent goes on.

All executions run at once on one worker, each with a fault of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from celery_durable.store.records import State
from tests.conftest import BROKERS, DATABASES, _use
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory

from .arena import Arena

# The first test of a database waits for all cells.
pytestmark = [pytest.mark.brokers("redis"), pytest.mark.timeout(240)]


class Cell(NamedTuple):
    body: str
    point: str
    #: Whether the fault waits for the parent, its child, or the promise that a child keeps.
    at: str = "parent"

    def __str__(self) -> str:
        return f"{self.body}-{self.at}-{self.point}"


PARENT = ["child.before_record", "child.after_record", "child.after_send", "wait.before_suspend", "wait.woken"]
CHILD = ["child.before_settle", "child.after_settle", "task.after_open", "task.returned"]
CELLS = [
    *(Cell("calls", point) for point in PARENT),
    *(Cell("calls", point, "child") for point in CHILD),
    *(Cell("calls_plain", point) for point in PARENT),
    *(Cell("calls_plain", point, "promise") for point in ("child.before_settle", "child.after_settle")),
    *(Cell("gathers", point) for point in PARENT),
    *(Cell("gathers", point, "child") for point in CHILD),
    Cell("hurries", "child.before_cancel"),
    Cell("hurries", "wait.woken"),
]
RETURNS = {"calls": 14, "calls_plain": 14, "gathers": 12, "hurries": ["ChildCancelled", 2, "ChildCancelled"]}


def _send(arena: Arena, cell: Cell) -> None:
    name = str(cell)
    task = "plain" if cell.body == "calls_plain" else "double"
    where = {"parent": name, "child": arena.child(name, task), "promise": arena.promise(name, task)}[cell.at]
    arena.arm(where, cell.point)
    arena.send(name, cell.body, *{"gathers": (4,), "hurries": ()}.get(cell.body, (7,)))


def _children(arena: Arena, cell: Cell) -> list[str]:
    count = {"gathers": 4, "hurries": 1, "calls": 1}.get(cell.body, 0)
    return [arena.child(str(cell), "double", number) for number in range(count)]


@pytest.fixture(scope="module")
def settled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """The arena after all have come to their end."""
    folder = tmp_path_factory.mktemp("arena")
    workers = WorkerFactory(tmp_path_factory.mktemp("workers"))
    with _use(DATABASES, request.param).lend(folder) as database, _use(BROKERS, "redis").lend(folder) as broker:
        arena = Arena(database, broker, workers, Ledger(folder / "ledger.jsonl"), folder)
        try:
            for cell in CELLS:
                _send(arena, cell)
            worker = arena.worker(concurrency=4)
            names = [*map(str, CELLS), *(child for cell in CELLS for child in _children(arena, cell))]
            arena.await_started(names)
            arena.await_settled(names, timeout=150)
            arena.await_empty_broker()
            assert worker.alive
            yield arena
        finally:
            workers.end()
            arena.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "settled" in metafunc.fixturenames:
        metafunc.parametrize("settled", ["sqlite", "postgresql", "mysql"], indirect=True, scope="module")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_each_child_runs_once_whoever_is_killed(settled: Arena, cell: Cell) -> None:
    arena, name = settled, str(cell)
    assert arena.row(name).state is State.COMPLETED
    assert eventually(lambda: arena.result(name).get(timeout=10)) == RETURNS[cell.body]
    if cell.body != "hurries":
        assert (len(arena.fired(name, "before")), len(arena.fired(name, "after"))) == (1, 1)
    done = [len(arena.fired(child, "work")) for child in _children(arena, cell)]
    assert done == [1] * len(done)
    assert arena.unreached(name) == []


def test_each_plain_child_runs_once(settled: Arena) -> None:
    """It is forgotten as soon as it is sent; only a kill in between sends it twice."""
    assert settled.ledger.count("plain") == sum(cell.body == "calls_plain" for cell in CELLS)


def test_every_fault_was_met(settled: Arena) -> None:
    assert settled.unreached() == []
