"""Parents and children on real workers."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import State
from celery_durable.execution.cancelling import cancel
from tests.support.wait import eventually

from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql"), pytest.mark.timeout(120)]


POOLS = pytest.mark.parametrize("pool", ["prefork", "gevent"])

#: Parents, children and the tasks between them are greenlets of one process then. Celery's loop looks for acknowledged
#: messages every two seconds there, so it takes some in advance.
GEVENT: dict[str, Any] = {"pool": "gevent", "concurrency": 20, "conf": {"worker_prefetch_multiplier": 4}}
OPTIONS: dict[str, dict[str, Any]] = {"prefork": {"concurrency": 2}, "gevent": GEVENT}


@POOLS
def test_every_kind_of_child_gives_its_end_to_the_parent(arena: Arena, pool: str) -> None:
    arena.worker(**OPTIONS[pool])
    arena.send("kinds", "kinds")
    found = arena.result("kinds").get(timeout=90)
    # Whichever Celery tells first.
    assert found.pop("failed in a chord") in (["ChildFailed", "Declined"], ["ChildFailed", "ChordError"])
    assert found == {
        "chain": 4,
        "chain of durable ones": 4,
        "chord": 6,
        "group": [2, 4],
        "group in a chain": [4, 4],
        "retried": 2,
        "replaced": 2,
        "by name": 8,
        "failed": ["ChildFailed", "Declined"],
        "failed plainly": ["ChildFailed", "Declined"],
        "failed in a chain": ["ChildFailed", "Declined"],
        "expired": ["ChildCancelled", "NoneType"],
        "late": ["ChildTimeout", "NoneType"],
    }
    rows = arena.operations.find(limit=100)
    arena.await_settled([row.id for row in rows])
    # Each child ran once, though the parent was tried again and replayed often.
    assert arena.ledger.count("work") == 8
    assert arena.ledger.count("plain") == 8
    assert [row.state for row in rows if row.task.endswith(".rest")] == [State.CANCELLED]
    arena.await_empty_broker()
    assert arena.operations.find(states=[State.SUSPENDED]) == []


@POOLS
def test_what_is_not_needed_any_more_is_cancelled(arena: Arena, pool: str) -> None:
    arena.worker(**OPTIONS[pool])
    arena.send("hurries", "hurries")
    assert arena.result("hurries").get(timeout=60) == ["ChildCancelled", 2, "ChildCancelled"]
    rows = {row.task.rpartition(".")[2] + row.state.value: row for row in arena.operations.find()}
    assert sorted(rows) == ["doublecompleted", "hurriescompleted", "restcancelled"]


@POOLS
def test_the_children_of_a_cancelled_parent_are_cancelled(arena: Arena, pool: str) -> None:
    worker = arena.worker(**OPTIONS[pool])
    arena.send("patient", "patient")

    def waiting() -> list[str]:
        return [row.task.rpartition(".")[2] for row in arena.operations.find(states=[State.SUSPENDED])]

    eventually(lambda: sorted(waiting()) == ["one_that_waits", "patient", "rest", "rest"], 60)
    eventually(lambda: ".plain[" in worker.log(), 60)
    cancel(arena.outside, "patient", "the test")
    assert {row.state for row in arena.operations.find()} == {State.CANCELLED}
    assert len(arena.operations.find()) == 4
    eventually(lambda: "Tasks flagged as revoked" in worker.log(), 60)
    assert arena.result("patient").state == "REVOKED"


def test_a_parent_that_is_cancelled_undoes_what_it_did_and_its_child_is_cancelled(arena: Arena) -> None:
    arena.worker(concurrency=2)
    arena.send("undoes", "undoes")
    eventually(lambda: len(arena.operations.find(states=[State.SUSPENDED])) == 2, 60)
    cancel(arena.outside, "undoes", "the test")
    rows = [row.id for row in arena.operations.find()]
    arena.await_settled(rows)
    assert len(rows) == 2
    assert {row.state for row in arena.operations.find()} == {State.CANCELLED}
    # Booked, and taken back.
    assert len(arena.ledger.entries(execution="undoes")) == 2


def test_a_parent_of_a_thousand(arena: Arena) -> None:
    arena.worker(concurrency=4, durable={"durable_lease_timeout": 30})
    arena.send("many", "many", 1000)
    assert arena.result("many").get(timeout=100) == 999_000
    assert arena.ledger.count("work") == 1000
    # Sent once, and once more when all had ended.
    assert arena.row("many").epoch == 2


@POOLS
def test_children_of_children(arena: Arena, pool: str) -> None:
    arena.worker(**OPTIONS[pool])
    arena.send("tree", "tree", 4)
    assert arena.result("tree").get(timeout=60) == 16
    assert arena.ledger.count("work") == 16


@pytest.mark.parametrize(
    ("body", "point", "at"),
    [
        ("calls", "child.after_record", "parent"),
        ("calls", "child.before_settle", "child"),
        ("calls", "wait.woken", "parent"),
        ("calls_plain", "child.after_settle", "promise"),
    ],
)
def test_another_worker_goes_on_where_a_gevent_worker_was_killed(arena: Arena, body: str, point: str, at: str) -> None:
    task = "plain" if body == "calls_plain" else "double"
    where = {"parent": "one", "child": arena.child("one", task), "promise": arena.promise("one", task)}[at]
    arena.arm(where, point)
    lost = arena.worker(**GEVENT)
    arena.send("one", body, 7)
    eventually(lambda: not lost.alive, 60)
    arena.worker(**GEVENT)
    assert arena.result("one").get(timeout=60) == 14
    assert [len(arena.fired("one", name)) for name in ("before", "after")] == [1, 1]
    assert arena.ledger.count("plain" if task == "plain" else "work") == 1
    assert arena.unreached() == []
