"""SIGKILL around the start of a child, and another ``durable_secret`` after it: each child is started once, and found.

What names a child and what starts it are one commit, so that there is nothing in between.
"""

from __future__ import annotations

import psutil
import pytest

from celery_durable.identity import child_of
from celery_durable.store.records import State
from celery_durable.waits.tokens import Tokens
from tests.support.wait import eventually

from .arena import LEASE, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.timeout(180)]

OLD, NEW = "the old secret, long", "the new secret, long"

#: Where the worker dies, and of which secret the child's id is in the end.
PLACES = {
    "child.before_record": NEW,
    "child.after_record": OLD,
    "child.after_send": OLD,
    "wait.before_suspend": OLD,
}


@pytest.mark.parametrize("later", [[NEW, OLD], NEW, None], ids=["rotated", "replaced", "removed"])
def test_each_child_is_started_once_though_the_secret_changes(arena: Arena, later: str | list[str] | None) -> None:
    usual = {"durable_lease_timeout": LEASE, "durable_recovery_interval": 0.2, "durable_max_attempts": 100}
    for point in PLACES:
        arena.arm(point, point, action="stop")
    lost = arena.worker(concurrency=len(PLACES), durable={**usual, "durable_secret": OLD})
    for point in PLACES:
        arena.send(point, "calls", 7)

    def all_stopped() -> bool:
        states = [psutil.Process(pid).status() for pid in lost.children()]
        return states.count(psutil.STATUS_STOPPED) == len(PLACES)

    eventually(all_stopped, 60)
    lost.crash()

    arena.worker(concurrency=2, durable={**usual, "durable_secret": later})
    children = {}
    for point, secret in PLACES.items():
        tokens = Tokens(later if secret == NEW else OLD)
        children[point] = child_of(tokens.child_id(arena.namespace, point, "", f"{arena.app}.double", 0))
    arena.await_settled([*PLACES, *children.values()])
    assert {row.id for row in arena.operations.find(limit=100)} == {*PLACES, *children.values()}
    for point, child in children.items():
        assert arena.row(point).state is State.COMPLETED
        assert arena.result(point).get(timeout=30) == 14
        assert [len(arena.fired(*one)) for one in ((point, "before"), (child, "work"), (point, "after"))] == [1, 1, 1]
    assert arena.unreached() == []
