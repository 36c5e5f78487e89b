"""A whole worker dies, or is stopped and wakes later: others go on, and what is left of the first changes nothing."""

from __future__ import annotations

import psutil
import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

from .arena import Arena
from .matrix import MATRIX, Cell

pytestmark = pytest.mark.brokers("redis")

#: One step of each kind in hand when the worker is lost, just after its effect has happened.
IN_HAND = [cell for cell in MATRIX if cell.place == "effect.after" and cell.edge in ("idempotent", "RERUN", "FAIL")]


def _expect(arena: Arena, cell: Cell) -> None:
    row = arena.row(cell.id)
    assert row.state is (State.AMBIGUOUS if cell.ends == "parked" else State.COMPLETED)
    assert row.attempts == 1
    assert len(arena.fired(cell.id, "before")) == 1
    assert len(arena.fired(cell.id, "edge")) in cell.fired
    assert len(arena.fired(cell.id, "after")) == (0 if cell.ends == "parked" else 1)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _begin(arena: Arena, task: str, stops: list[Cell], **conf: float) -> tuple[WorkerProcess, list[int]]:
    """A worker begins these executions, and each of its processes is stopped in the middle of one."""
    for cell in stops:
        for kill in cell.kills:
            arena.arm(cell.id, kill.point, action="stop", step=kill.step)
    worker = arena.worker(name="first", concurrency=len(stops), conf=conf)
    for cell in stops:
        arena.send(cell.id, task, cell.edge)

    def all_stopped() -> list[int]:
        stopped = [pid for pid in worker.children() if psutil.Process(pid).status() == psutil.STATUS_STOPPED]
        return stopped if len(stopped) == len(stops) else []

    return worker, eventually(all_stopped, 60)


def test_another_worker_takes_over_from_a_killed_one_after_the_lease(arena: Arena):
    # Stopped processes prolong no lease: this one outlasts the start of another worker.
    lost, children = _begin(arena, "cell", IN_HAND, durable_lease_timeout=10.0)
    arena.worker(name="heir", concurrency=2)
    assert {arena.row(cell.id).epoch for cell in IN_HAND} == {1}
    lost.kill()
    arena.await_settled([cell.id for cell in IN_HAND])
    assert not any(map(_lives, children)), "children outlived their worker"
    for cell in IN_HAND:
        _expect(arena, cell)


def test_a_worker_that_is_started_again_alone_goes_on_with_what_it_had(arena: Arena):
    lost, _ = _begin(arena, "cell", IN_HAND)
    lost.kill()
    # Its recovery service dies once, after it has claimed them and before it has sent anything.
    arena.arm(IN_HAND[0].id, "recovery.after_claim")
    arena.worker(name="again", concurrency=2)
    arena.await_settled([cell.id for cell in IN_HAND])
    assert arena.unreached() == []
    for cell in IN_HAND:
        _expect(arena, cell)


#: Where a process is stopped, how often the effect of its step happens in the end, and whether knowledge was lost.
#: An operation that had begun cannot be called back: both owners' happen then, under one key.
STOPS = {
    "step.before_intent": (1, False),
    "step.after_intent": (1, True),
    "step.before_effect": (1, True),
    "effect.before": (2, True),
    "effect.after": (2, True),
    "step.after_effect": (2, True),
    "task.before_outcome": (1, False),
}


def test_a_process_that_wakes_after_its_lease_was_taken_changes_nothing(arena: Arena):
    cells = [cell for cell in MATRIX if cell.place in STOPS and cell.edge == "RERUN"]
    assert len(cells) == len(STOPS)
    first, zombies = _begin(arena, "who", cells)
    first.pause()
    second = arena.worker(name="second", concurrency=2)
    arena.await_settled([cell.id for cell in cells])

    before = {cell: (arena.row(cell.id), arena.journal(cell.id)) for cell in cells}
    outcomes = {cell: arena.result(cell.id).get(timeout=30) for cell in cells}
    assert set(outcomes.values()) <= set(second.children())
    for cell in cells:
        times, lost = STOPS[cell.place]
        assert before[cell][0].state is State.COMPLETED
        assert before[cell][0].epoch == 2
        # Of the two owners' operations, the zombie's has not happened yet where it was stopped before it.
        assert len(arena.fired(cell.id, "edge")) == (times - 1 if cell.place == "effect.before" else times)
        assert arena.decisions(cell.id) == (["rerun"] if lost else [])

    first.resume()
    # Their messages are dropped, and they are free for other work.
    arena.await_empty_broker()
    arena.send("afterwards", "cell", "RERUN")
    arena.await_settled(["afterwards"])
    assert set(zombies) <= set(first.children())

    for cell in cells:
        times, _ = STOPS[cell.place]
        assert (arena.row(cell.id), arena.journal(cell.id)) == before[cell]
        assert arena.result(cell.id).get(timeout=30) == outcomes[cell]
        fired = arena.fired(cell.id, "edge")
        assert len(fired) == times
        assert len({entry["key"] for entry in fired}) == 1
        assert len(arena.fired(cell.id, "before")) == 1
        # Only one was stopped so late that it had come to this step.
        [after] = arena.fired(cell.id, "after")
        assert (after["pid"] == outcomes[cell]) == (cell.place != "task.before_outcome")
