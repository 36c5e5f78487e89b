"""The crash matrix, by real workers and SIGKILL, on every database: see :mod:`.matrix` for what is expected where.

All executions run at once on one worker, each with faults of its own; the tests look at what became of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_durable.store.records import State
from tests.conftest import BROKERS, DATABASES, _use
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory

from .arena import Arena
from .matrix import MATRIX, Cell

# The first test of a database waits for all cells.
pytestmark = [pytest.mark.brokers("redis"), pytest.mark.timeout(300)]


#: How the audit calls what a policy decided.
DECISIONS = {
    "SKIP": "skip",
    "RERUN": "rerun",
    "FAIL": "fail",
    "happened": "reconcile: happened",
    "did_not": "reconcile: did not happen",
    "unknown": "reconcile: unknown",
}

#: A lease that also a very busy machine renews in time.
PATIENT = {"durable_lease_timeout": 8.0, "durable_recovery_interval": 0.2, "durable_max_attempts": 100}

# The fixtures of all tests, for the whole module.


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JournalDatabase]:
    with _use(DATABASES, request.param).lend(tmp_path_factory.mktemp("database")) as lent:
        yield lent


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MessageBroker]:
    with _use(BROKERS, request.param).lend(tmp_path_factory.mktemp("broker")) as lent:
        yield lent


@pytest.fixture(scope="module")
def workers(database: JournalDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerFactory]:
    factory = WorkerFactory(tmp_path_factory.mktemp("workers"))
    yield factory
    factory.end()


@pytest.fixture(scope="module")
def settled(
    database: JournalDatabase,
    broker: MessageBroker,
    workers: WorkerFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Arena]:
    """The arena after all cells have come to their end."""
    folder = tmp_path_factory.mktemp("arena")
    arena = Arena(database, broker, workers, Ledger(folder / "ledger.jsonl"), folder)
    for cell in MATRIX:
        for kill in cell.kills:
            arena.arm(cell.id, kill.point, nth=kill.nth, step=kill.step)
    # Nobody may lose a lease but by being killed: what follows the edge would rightly be done twice.
    worker = arena.worker(concurrency=4, durable=PATIENT)
    for cell in MATRIX:
        arena.send(cell.id, "cell", cell.edge)
    arena.await_settled([cell.id for cell in MATRIX], timeout=150)
    arena.await_empty_broker()
    assert worker.alive
    yield arena
    arena.close()


@pytest.mark.parametrize("cell", MATRIX, ids=str)
def test_a_killed_process_leaves(settled: Arena, cell: Cell):
    arena = settled
    assert arena.unreached(cell.id) == []

    row = arena.row(cell.id)
    # Shown when the test fails.
    print(row, *arena.journal(cell.id), *arena.ledger.entries(execution=cell.id), sep="\n")
    result = arena.result(cell.id)
    if cell.ends == "parked":
        assert row.state is State.AMBIGUOUS
        assert result.state == "AMBIGUOUS"
    else:
        assert row.state is State.COMPLETED
        assert eventually(lambda: result.state == "SUCCESS")
        assert result.get(timeout=10) == cell.ends

    fired = arena.fired(cell.id, "edge")
    assert len(fired) in cell.fired
    assert len({entry["key"] for entry in fired}) <= 1, "one step, but several idempotency keys"
    decisions = arena.decisions(cell.id)
    assert [one for one in decisions if one != "parked"] == [_decision(cell)] * cell.audits
    assert ("parked" in decisions) == (cell.ends == "parked")

    # What was done before is not done again, and what follows is done once.
    assert len(arena.fired(cell.id, "before")) == 1
    assert len(arena.fired(cell.id, "after")) == (0 if cell.ends == "parked" else 1)


def _decision(cell: Cell) -> str:
    """What the audit says of it."""
    asked = {"told": DECISIONS["happened"], "live": DECISIONS["did_not"]}
    return asked[cell.ends] if cell.edge == "asks" else DECISIONS.get(cell.edge, "")
