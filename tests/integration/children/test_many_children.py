"""A parent of many children: it is sent once, however many end, and those it needs no more are cancelled together."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from celery_durable import ChildCancelled, DurableContext, State
from celery_durable.children import call as calls
from celery_durable.children.starting import Children
from celery_durable.execution.cancelling import cancel_all
from celery_durable.store.children import kept_by
from celery_durable.store.records import PromiseState
from celery_durable.store.tables import executions, promises
from tests.support.crowd import analyse
from tests.support.delivery import Delivery
from tests.support.effort import Effort
from tests.support.lab import Lab, everywhere

from .test_children import Family


def names(found: list[Any]) -> list[Any]:
    """With the names of exceptions in their place."""
    return [type(one).__name__ if isinstance(one, Exception) else one for one in found]


@pytest.fixture
def family(lab: Lab) -> Family:
    return Family(lab)


@everywhere
def test_a_parent_whose_message_is_on_its_way_is_not_sent_again(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(*(family.plain.s(number) for number in range(5)), tolerate=5))

    deliver.suspends(body)
    children = family.started()
    assert lab.execution().sends == 0
    family.settle(children[0], error=ValueError("no"))
    first = lab.execution()
    assert first.sends == 1
    for child in children[1:]:
        family.settle(child, error=ValueError("no"))
    # None of the others counts as a message that was lost, nor puts the look of recovery off.
    assert lab.execution() == first
    with lab.app.connection_for_read() as connection:
        assert connection.SimpleQueue("celery").qsize() == 1
    # That one may be lost all the same.
    family.again(deliver)
    assert lab.execution().sends == 2
    assert deliver(body) == ["ChildFailed"] * 5


@everywhere
def test_the_end_of_a_child_is_no_look_at_all_the_others(lab: Lab, deliver: Delivery, family: Family) -> None:
    number = 450

    def body(ctx: DurableContext) -> Any:
        return sum(ctx.gather(*(family.plain.s(number) for number in range(number))))

    deliver.suspends(body)
    children = family.started()
    *most, one, last = children
    codec, data = lab.runtime.codec.encode({"value": 1}, "a value")
    values = {"state": int(PromiseState.RESOLVED), "codec": codec, "data": data, "settled_at": promises.c.created_at}
    ended = promises.c.id.in_([kept_by(child) for child in most])
    assert lab.sql(sa.update(promises).where(ended).values(**values)) == len(most)
    analyse(lab.runtime.database.engine)
    effort = Effort()
    with effort.watched():
        family.settle(one, value=1)
    assert lab.execution().sends == 0
    with effort.watched():
        family.settle(last, value=1)
    assert lab.execution().sends == 1
    assert any("awaited" in spent.statement for spent in effort.spent)
    assert [str(spent) for spent in effort.spent if spent.rows > 40] == []
    assert deliver(body) == number


@everywhere
@pytest.mark.parametrize("until", ["all", 5])
def test_children_that_end_at_the_same_moment_wake_their_parent_once(
    lab: Lab, deliver: Delivery, family: Family, until: Any
) -> None:
    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(*(family.plain.s(number) for number in range(8)), until=until))

    deliver.suspends(body)
    children = family.started()
    start = threading.Barrier(len(children))

    def end(child: str) -> None:
        start.wait(60)
        family.settle(child, value=1)

    threads = [threading.Thread(target=end, args=(child,)) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert lab.execution().sends == 1
    with lab.app.connection_for_read() as connection:
        assert connection.SimpleQueue("celery").qsize() == 1
    found = deliver(body)
    assert found.count(1) == 8 if until == "all" else found.count(1) >= 5


@everywhere
def test_a_message_that_nobody_took_leaves_the_next_end_to_send_one(
    lab: Lab, deliver: Delivery, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(*(family.plain.s(number) for number in range(3)), tolerate=3))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the broker is away")

    deliver.suspends(body)
    children = family.started()
    with monkeypatch.context() as patch:
        patch.setattr("celery_durable.messaging.envelope.resend", refuse)
        family.settle(children[0], error=ValueError("no"))
    assert lab.execution().sends == 0
    family.settle(children[1], error=ValueError("no"))
    assert lab.execution().sends == 1
    with lab.app.connection_for_read() as connection:
        assert connection.SimpleQueue("celery").qsize() == 1


@everywhere
def test_children_are_not_started_when_the_first_ones_have_decided_it(
    lab: Lab, deliver: Delivery, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_WAVE", 2)
    sent: list[int] = []
    send = Children.send

    def sending(self: Children, launch: Any) -> None:
        send(self, launch)
        sent.append(len(launch.waiting))
        if len(sent) == 2:
            # In the meantime one of the first wave has ended.
            family.settle(launch.waiting[0].stash.id, value=7)

    monkeypatch.setattr(Children, "send", sending)

    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(*(family.plain.s(number) for number in range(9)), until="first"))

    assert deliver(body) == [*["ChildCancelled"] * 2, 7, *["ChildCancelled"] * 6]
    assert sent == [2, 2]
    assert len(family.started()) == 4


@everywhere
def test_children_that_have_not_begun_are_cancelled_together(lab: Lab, deliver: Delivery, family: Family) -> None:
    lab.app.conf.result_backend = "cache+memory://"
    number = 450

    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(*(family.kid.s(number) for number in range(number)), until="first"))

    deliver.suspends(body)
    children = family.started()
    assert len(children) == number
    family.run(family.kid, children[3])
    statements: list[str] = []
    note = lambda *args: statements.append(args[2])  # noqa: E731
    event.listen(lab.runtime.database.engine, "before_cursor_execute", note)
    found = deliver(body)
    event.remove(lab.runtime.database.engine, "before_cursor_execute", note)
    assert [one for one in found if one != "ChildCancelled"] == [5]
    # Three transactions of a few statements each, not one for each child.
    assert len(statements) < 100
    states = {one: lab.state(one) for one in children}
    assert states.pop(children[3]) is State.COMPLETED
    assert set(states.values()) == {State.CANCELLED}
    assert lab.reason(children[0]) == "it was not needed any more by its parent one"
    assert all(lab.app.AsyncResult(one).state == "REVOKED" for one in children[:3])
    rows = lab.runtime.promises.of([lab.execution().pk])
    assert {row.state for row in rows} == {PromiseState.RESOLVED, PromiseState.CANCELLED}
    # Their messages are still there; whoever takes them does nothing.
    family.run(family.kid, children[0])
    assert lab.ledger.count("work") == 1


@everywhere
def test_a_parent_that_sleeps_is_woken_by_the_cancellation_of_its_child(
    lab: Lab, deliver: Delivery, family: Family
) -> None:
    def body(ctx: DurableContext) -> Any:
        with pytest.raises(ChildCancelled, match="the test"):
            ctx.call(family.kid.s(1))
        return "went on"

    deliver.suspends(body)
    [child] = family.started()
    cancel_all(lab.app, [child, child], "the test")
    assert lab.state(child) is State.CANCELLED
    assert "one" in deliver.due()
    assert deliver(body) == "went on"


@everywhere
def test_a_child_that_has_begun_is_cancelled_as_ever(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return names(ctx.gather(family.kid.s(1), family.kid.s(2), until="first"))

    deliver.suspends(body)
    ended, begun = family.started()
    family.run(family.kid, ended)
    assert lab.sql(sa.update(executions).where(executions.c.id == begun).values(epoch=3, state=State.PENDING.value))
    assert deliver(body) == [5, "ChildCancelled"]
    assert lab.state(begun) is State.CANCELLED
    assert lab.execution(begun).epoch == 4
