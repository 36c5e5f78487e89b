"""Pool processes that are replaced after so many tasks, or so much memory."""

from __future__ import annotations

import pytest

from celery_durable.store.records import State

from .arena import PATIENT, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]

TASKS = 6


@pytest.mark.parametrize(
    ("limit", "processes"), [(("--max-tasks-per-child", "2"), TASKS // 2), (("--max-memory-per-child", "1"), TASKS)]
)
def test_a_recycled_process_leaves_nothing_undone(arena: Arena, limit: tuple[str, ...], processes: int):
    """Leases last for minutes: what a process had left undone would be seen."""
    arena.worker(durable=PATIENT, args=("--without-gossip", "--without-mingle", *limit))
    executions = [f"tiny-{number}" for number in range(TASKS)]
    for number, execution in enumerate(executions):
        arena.send(execution, "tiny", number)
    # All have ended, and that Celery was told is marked.
    arena.await_settled(executions)
    for number, execution in enumerate(executions):
        row = arena.row(execution)
        assert (row.state, row.epoch, row.attempts) == (State.COMPLETED, 1, 0)
        assert arena.result(execution).get(timeout=30) == 2 * number
        assert arena.ledger.count(f"double {number}", execution=execution) == 1
    assert len({entry["pid"] for entry in arena.ledger.entries("body")}) == processes
