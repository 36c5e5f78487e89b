"""A child's id that somebody else's execution has: the parent parks, and says so; it does not wait for ever."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import DurableContext
from celery_durable.identity import child_id, child_of
from celery_durable.runtime import Runtime
from celery_durable.store.records import Published, State, StoredPayload
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab, everywhere

pytestmark = everywhere


def take(lab: Lab, id: str) -> None:  # noqa: A002
    """An outsider's call under an id of his choice."""
    envelope = StoredPayload(17, b"{}")
    lab.runtime.recovery.publish([Published(id, "somebody.elses", 0, envelope, args_hash=b"x" * 32)])


def test_a_child_whose_id_is_taken_parks_its_parent(lab: Lab, deliver: Delivery) -> None:
    child = lab.task("child", lambda task, number: number)
    taken = child_of(child_id(Runtime.of(lab.app).settings.namespace, "one", "", "child", 0))
    take(lab, taken)

    def body(ctx: DurableContext) -> Any:
        ctx.step("before", lab.operation("before"))
        return ctx.call(child.s(7))

    with pytest.raises(Left, match="quarantined"):
        deliver(body)
    assert taken in lab.reason()
    assert "somebody.elses" in lab.reason()
    assert lab.state() is State.QUARANTINED
    assert lab.execution(taken).task == "somebody.elses", "his is left alone"
    assert lab.ledger.count("before") == 1


def test_others_children_are_started(lab: Lab, deliver: Delivery) -> None:
    child = lab.task("child", lambda task, number: number)
    deliver.suspends(lambda ctx: ctx.gather(child.s(1), child.s(2)))
    started = [row.id for row in lab.operations.find(limit=10) if row.task == "child"]
    assert len(started) == 2
