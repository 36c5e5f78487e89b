"""Processes that die before it is known what there is to undo, and while they undo: all of it is undone, backwards, and
what is known to be undone once.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_durable.store.records import State
from tests.support.wait import eventually

from .app import BOOKINGS
from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite", "postgresql", "mysql")]

UNDONE = ["undo second", "undo happen", "undo first"]
#: Where the process dies; how often it undoes each thing then. Twice only where nobody knows whether it was done.
EDGES: dict[tuple[str, str], list[str]] = {
    ("saga.before_decision", ""): UNDONE,
    ("saga.after_decision", ""): UNDONE,
    ("step.after_intent", "undo second"): UNDONE,
    ("effect.before", "undo happen"): UNDONE,
    ("effect.after", "undo happen"): ["undo second", "undo happen", "undo happen", "undo first"],
    ("step.after_result", "undo happen"): UNDONE,
    ("effect.after", "undo first"): ["undo second", "undo happen", "undo first", "undo first"],
    ("task.before_outcome", ""): UNDONE,
    ("task.after_outcome", ""): UNDONE,
}


def name(point: str, step: str) -> str:
    return f"{point} {step}".strip().replace(" ", "-")


@pytest.fixture
def killed(arena: Arena) -> Callable[[str, bool], None]:
    """Send executions that are killed, one at each edge."""

    def send(task: str, fails: bool) -> None:
        for point, step in EDGES:
            arena.arm(name(point, step), point, step=step)
            arena.send(name(point, step), task, fails)

    return send


def check(arena: Arena, state: State) -> None:
    names = [name(*edge) for edge in EDGES]
    arena.await_settled(names)
    assert arena.unreached() == []
    for edge, expected in EDGES.items():
        one = name(*edge)
        happened = [entry["name"] for entry in arena.ledger.entries(execution=one)]
        assert happened == ["first", "second", *expected], one
        keys = {entry["name"]: set() for entry in arena.ledger.entries(execution=one)}
        for entry in arena.ledger.entries(execution=one):
            keys[entry["name"]].add(entry["key"])
        assert {len(found) for found in keys.values()} == {1}, one
        assert arena.row(one).state is state, one


def test_what_failed_is_undone_whoever_dies_meanwhile(arena: Arena, killed: Callable[[str, bool], None]) -> None:
    arena.worker(concurrency=4)
    killed("undone", True)
    check(arena, State.FAILED)
    for edge in EDGES:
        with pytest.raises(ValueError, match="in vain"):
            arena.result(name(*edge)).get(timeout=30)


def test_what_is_cancelled_while_it_waits_is_undone_whoever_dies_meanwhile(
    arena: Arena, killed: Callable[[str, bool], None]
) -> None:
    arena.worker(concurrency=4)
    killed("undone", False)
    names = [name(*edge) for edge in EDGES]
    arena.await_started(names)
    eventually(lambda: all(arena.row(one).state is State.SUSPENDED for one in names), 60)
    for one in names:
        arena.operations.cancel(one, "not wanted")
    check(arena, State.CANCELLED)
    for one in names:
        eventually(lambda one=one: arena.result(one).state == "REVOKED", 30)


def test_what_was_done_when_its_process_died_is_undone_though_its_result_was_never_committed(arena: Arena) -> None:
    """It may be repeated, so it is: then it is known what there is to undo."""
    arena.worker(concurrency=3)
    names = {
        f"{task}-{effect}": (task, effect)
        for task in ("booked", "booked_in_a_branch", "booked_async")
        for effect in BOOKINGS
    }
    for one, (task, effect) in names.items():
        arena.arm(one, "effect.after", step="book")
        arena.send(one, task, effect)
        eventually(lambda one=one: arena.fired(one, "book"), 60)
        # Its owner lives, and will not learn of this any more.
        arena.operations.cancel(one, "not wanted")
        arena.open_gate(f"seen-{one}")
    arena.await_settled(list(names))
    assert arena.unreached() == []
    for one in names:
        happened = [entry["name"] for entry in arena.ledger.entries(execution=one) if entry["name"] != "edge"]
        assert happened == ["book", "book", "undo book"], one
        assert len({entry["key"] for entry in arena.fired(one, "book")}) == 1, one
        assert arena.row(one).state is State.CANCELLED, one
        assert arena.decisions(one) == [], one
