"""Canvas of durable tasks whose processes are killed: the right result, and each callback once."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from celery.exceptions import ChordError

from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql")]

#: A process is killed before its outcome is committed, after that and before Celery knows of it, or when Celery has
#: sent the callbacks and nobody has noted that.
KILLS = ("task.before_outcome", "task.after_outcome", "task.returned")


class Canvas:
    """Makes signatures whose processes are killed, each of three at another point."""

    def __init__(self, arena: Arena, shift: int) -> None:
        self.arena = arena
        self.worker = arena.worker(concurrency=3)
        self.ids: list[str] = []
        #: Which point is the first one's.
        self.shift = shift

    def sign(self, task: str, *args: Any) -> Signature[Any]:
        execution = f"{task}-{len(self.ids)}"
        self.arena.arm(execution, KILLS[(len(self.ids) + self.shift) % len(KILLS)])
        self.ids.append(execution)
        return self.sign_only(task, *args, id=execution)

    def sign_only(self, task: str, *args: Any, id: str) -> Signature[Any]:  # noqa: A002
        return self.arena.client.signature(f"{APP}.{task}", args, task_id=id)

    def expect_once(self) -> None:
        """Every member's effect happened once, and every process was killed."""
        self.arena.await_settled(self.ids)
        assert {one: self.arena.ledger.count("work", execution=one) for one in self.ids} == dict.fromkeys(self.ids, 1)
        assert self.arena.unreached() == []
        self.arena.await_empty_broker()
        assert {row.id for row in self.arena.operations.find(limit=1000)} == set(self.ids)


@pytest.fixture
def canvas(arena: Arena, request: pytest.FixtureRequest) -> Canvas:
    return Canvas(arena, getattr(request, "param", 0))


#: Every member dies at every point once.
everywhere = pytest.mark.parametrize("canvas", range(len(KILLS)), ids=KILLS, indirect=True)


@everywhere
def test_a_chain(canvas: Canvas):
    result = chain(canvas.sign("add", 1, 1), canvas.sign("add", 2), canvas.sign("add", 3)).apply_async()
    assert result.get(timeout=60) == 7
    canvas.expect_once()


def test_a_group(canvas: Canvas):
    result = group(canvas.sign("add", number, 1) for number in range(4)).apply_async()
    assert result.get(timeout=60) == [1, 2, 3, 4]
    canvas.expect_once()


@everywhere
def test_a_chord(canvas: Canvas):
    result = chord([canvas.sign("add", number, 1) for number in range(4)], canvas.sign("total")).apply_async()
    assert result.get(timeout=60) == 10
    canvas.expect_once()


def test_a_chord_in_a_chain_of_chains(canvas: Canvas):
    first = chain(canvas.sign("add", 1, 1), canvas.sign("add", 1))
    inner = chord([canvas.sign("add", 10), canvas.sign("add", 20)], canvas.sign("total"))
    result = chain(first, inner, canvas.sign("add", 100)).apply_async()
    assert result.get(timeout=60) == 3 + 10 + 3 + 20 + 100
    canvas.expect_once()


def test_a_chord_of_chains(canvas: Canvas):
    chains = [chain(canvas.sign("add", number), canvas.sign("add", 1)) for number in range(3)]
    result = chord(chains, canvas.sign("total")).apply_async()
    assert result.get(timeout=60) == 6
    canvas.expect_once()


@everywhere
def test_callbacks_and_errbacks(canvas: Canvas):
    good, bad = canvas.sign("add", 1, 2), canvas.sign("refuse")
    good.link(canvas.sign("add", 10))
    good.link(canvas.sign("add", 20))
    bad.link_error(canvas.sign("complain"))
    assert good.apply_async().get(timeout=60) == 3
    with pytest.raises(ValueError, match="refused"):
        bad.apply_async().get(timeout=60)
    canvas.arena.await_settled(canvas.ids)
    assert [canvas.arena.result(one).get(timeout=30) for one in ("add-2", "add-3")] == [13, 23]
    canvas.expect_once()


def test_a_chord_one_of_whose_members_fails(canvas: Canvas):
    body = canvas.sign_only("total", id="never")
    body.link_error(canvas.sign("complain"))
    result = chord([canvas.sign("add", 1), canvas.sign("refuse"), canvas.sign("add", 2)], body).apply_async()
    # get() may raise the member's own error, if it sees that one first.
    assert eventually(lambda: result.state == "FAILURE", 60)
    assert isinstance(result.result, ChordError)
    assert "refused" in str(result.result)
    canvas.expect_once()


def test_a_chord_whose_worker_is_lost(canvas: Canvas):
    """Not one process: the worker with all that it had, twice."""
    arena = canvas.arena
    ids = [f"held-{number}" for number in range(3)]
    members = [canvas.sign_only("held", id=one) for one in ids]
    pending = chord(members, canvas.sign_only("count", id="body")).apply_async()
    for lost in (1, 2):
        arena.await_bodies(ids, lost)
        canvas.worker.crash()
        canvas.worker = arena.worker(concurrency=3)
    arena.await_bodies(ids, 3)
    arena.open_gate("release")
    assert pending.get(timeout=60) == 3
    arena.expect_once(ids, "work", "after")
    arena.expect_once(["body"], "work")
