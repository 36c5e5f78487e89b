"""A new execution that begins behind, at, or before the children of an old one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, group

import celery_durable
from celery_durable import ChildFailed, DurableContext, ExecutionHandle, State, WrongState
from celery_durable.execution.cancelling import cancel
from celery_durable.identity import child_id, child_of
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.envelope import CHILD_HEADER
from celery_durable.store.children import kept_by
from celery_durable.store.records import PayloadKind
from celery_durable.store.tables import journal, promises
from tests.integration.children.test_children import Family
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab, everywhere


@pytest.fixture
def family(lab: Lab) -> Family:
    return Family(lab)


class Parent:
    """Has three calls between three steps. Notes what they gave."""

    def __init__(self, lab: Lab, family: Family) -> None:
        self.lab, self.family = lab, family
        self.heard: list[Any] = []
        #: How the body is written at the moment.
        self.first = "load"
        self.middle = "middle"
        #: What the last child is called with.
        self.last: Any = 3

    def __call__(self, ctx: DurableContext) -> Any:
        lab, family = self.lab, self.family
        ctx.step(self.first, lab.operation(self.first))
        heard: list[Any] = [ctx.call(family.kid.s(1))]
        try:
            ctx.call(family.plain.s("fails"), name="failing")
        except ChildFailed as error:
            heard.append(str(error.error))
        heard.append(ctx.gather(family.plain.s(1), family.plain.s(2), until="first")[0])
        ctx.step(self.middle, lab.operation(self.middle))
        heard.append(ctx.call(family.plain.s(self.last)))
        ctx.step("end", lab.operation("end"))
        self.heard.append(heard)
        return heard


@pytest.fixture
def parent(lab: Lab, family: Family) -> Parent:
    return Parent(lab, family)


@pytest.fixture
def first(lab: Lab, deliver: Delivery, family: Family, parent: Parent) -> ExecutionHandle:
    """An execution that has come to its end, whose last child returned 4."""
    deliver.suspends(parent)
    family.run(family.kid, family.started()[0])
    deliver.suspends(parent)
    family.settle(family.started()[0], error=ValueError("no"))
    deliver.suspends(parent)
    one, _ = family.started()
    family.settle(one, "quick")
    deliver.suspends(parent)
    family.settle(family.started()[0], 4)
    assert deliver(parent) == [5, "no", "quick", 4]
    family.messages()
    return celery_durable.get("one", lab.app)


def names(lab: Lab, id: str) -> list[str]:  # noqa: A002
    return [entry for entry in lab.entries(id) if not entry.startswith("#")]


@everywhere
def test_what_the_children_before_the_step_have_come_to_is_shared(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle
) -> None:
    again = first.rerun("end").id
    assert names(lab, again) == names(lab, "one")[:-1]
    # Nothing of the old one is needed any more.
    for table in (promises, journal):
        lab.sql(sa.delete(table).where(table.c.pk == lab.execution().pk))
    assert deliver(parent, id=again) == parent.heard[0]
    assert family.messages() == []
    assert [lab.ledger.count(name) for name in ("load", "work", "middle", "end")] == [1, 1, 1, 2]


@everywhere
def test_a_child_from_the_step_on_is_another_one(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle
) -> None:
    again = first.rerun("middle").id
    deliver.suspends(parent, id=again)
    [new] = family.started()
    # As the third call of its name in the new execution, whichever of those before it were made here.
    assert new == child_of(child_id("lab", again, "", "plain", 2))
    family.settle(new, 44)
    assert deliver(parent, id=again) == [5, "no", "quick", 44]
    assert first.result() == [5, "no", "quick", 4]
    assert (lab.ledger.count("work"), lab.ledger.count("middle")) == (1, 2)


@everywhere
@pytest.mark.parametrize("pruned", [False, True], ids=["", "the old one pruned"])
def test_shared_children_survive_a_divergence(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle, pruned: bool
) -> None:
    again = first.rerun("middle").id
    deliver.suspends(parent, id=again)
    family.settle(family.started()[0], 44)
    if pruned:
        lab.sql(sa.delete(promises).where(promises.c.pk == lab.execution().pk))
    parent.middle = "another"
    assert deliver(parent, id=again) == [5, "no", "quick", 44]
    assert lab.execution(again).generation == 2
    assert family.messages() == []
    assert [lab.ledger.count(name) for name in ("load", "work", "middle", "another", "end")] == [1, 1, 2, 1, 2]


@everywhere
def test_a_shared_child_whose_arguments_drift_is_left_to_an_operator(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle
) -> None:
    again = first.rerun("end").id
    parent.last = "something else"
    with pytest.raises(Left, match="quarantined"):
        deliver(parent, id=again)
    assert "asks for other steps than those that it shares" in lab.reason(again)
    assert family.messages() == []


@everywhere
def test_one_that_was_not_needed_is_not_waited_for(lab: Lab, deliver: Delivery, family: Family) -> None:
    """A plain task that ran already when it was no longer needed: nobody has said that it is cancelled."""
    end = ["end"]

    def body(ctx: DurableContext) -> Any:
        found = ctx.gather(family.plain.s(1), family.plain.s(2), until="first", tolerate=1)
        ctx.step(end[0], lab.operation(end[0]))
        return [f"{type(one).__name__}: {one}" for one in found]

    deliver.suspends(body)
    family.settle(family.started()[1], "quick")
    assert deliver(body)[1] == "str: quick"
    again = celery_durable.get("one", lab.app).rerun("end").id
    end[:] = ["another"]
    other, quick = deliver(body, id=again)
    assert quick == "str: quick"
    assert other.startswith("ChildCancelled: ")
    assert family.messages() == []


@everywhere
def test_children_of_branches_go_with_their_scope(lab: Lab, deliver: Delivery, family: Family) -> None:
    changed = []

    def body(ctx: DurableContext) -> Any:
        ctx.step("load", lab.operation("load"))
        values = ctx.map(lambda number: ctx.call(family.plain.s(number)), [1, 2])
        if changed:
            ctx.step("between", lab.operation("between"))
        more = ctx.map(lambda number: ctx.call(group(family.plain.s(number), family.kid.s(number))), [3])
        return [values, more, ctx.step("end", lab.operation("end", "end"))]

    deliver.suspends(body)
    for number, child in enumerate(family.started()):
        family.settle(child, number)
    deliver.suspends(body)
    for child in family.started():
        family.settle(child, "of the group")
    came = deliver(body)
    assert came[1:] == [[["of the group"] * 2], "end"]
    first = celery_durable.get("one", lab.app)
    all_shared, some_shared = first.rerun("end").id, first.rerun(2).id
    assert deliver(body, id=all_shared) == came
    assert family.messages() == []
    # The second map is done anew, the first one is not; also where the body has changed between them.
    deliver.suspends(body, id=some_shared)
    assert [task for task, _ in family.messages()] == ["plain", "kid"]
    changed.append(True)
    lab.wake()
    assert some_shared in deliver.due()
    deliver.suspends(body, id=some_shared)
    assert lab.execution(some_shared).generation == 2
    assert family.messages() == []


@everywhere
def test_a_rerun_of_a_rerun_shares_the_same_children(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle
) -> None:
    second = first.rerun("end")
    deliver(parent, id=second.id)
    third = second.rerun("end").id
    assert deliver(parent, id=third) == parent.heard[0]
    assert family.messages() == []
    assert lab.ledger.count("work") == 1


@everywhere
def test_a_call_that_is_open_is_begun_anew_or_refused(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        ctx.step("load", lab.operation("load"))
        return ctx.call(family.kid.s(1))

    deliver.suspends(body)
    [old] = family.started()
    cancel(lab.app, "one", "the test")
    assert lab.state(old) is State.CANCELLED
    first = celery_durable.get("one", lab.app)
    with pytest.raises(WrongState) as caught:
        first.rerun(2)
    assert caught.value.message == (
        "call 'kid' (position 1) of execution one has not ended, so it cannot be shared: choose from_step=1 or less, "
        "to begin before it. The tasks that it has started are not shared, and not cancelled."
    )
    for step in ("kid", 1):
        again = first.rerun(step).id
        deliver.suspends(body, id=again)
        [new] = family.started()
        assert new == child_of(child_id("lab", again, "", "kid", 0)) != old
        family.run(family.kid, new)
        assert deliver(body, id=again) == 5
    assert (lab.ledger.count("load"), lab.ledger.count("work")) == (1, 2)


@everywhere
def test_cancelling_a_rerun_leaves_the_children_that_it_shares_alone(
    lab: Lab, deliver: Delivery, family: Family, parent: Parent, first: ExecutionHandle
) -> None:
    again = first.rerun("middle").id
    deliver.suspends(parent, id=again)
    [new] = family.started()
    before = {row.id: row.state for row in lab.operations.find()}
    assert cancel(lab.app, again, "the test").problem is None
    after = {row.id: row.state for row in lab.operations.find()}
    assert {id_ for id_ in before if before[id_] != after[id_]} == {again}
    [promise] = lab.runtime.promises.look([kept_by(new) or ""]).rows.values()
    assert promise.pending


# -- a child that is run anew ---------------------------------------------------------------------------------------


@everywhere
def test_a_child_that_is_run_anew_is_nobodys_child(make_lab: Callable[..., Lab]) -> None:
    """Its parent goes by what becomes of the first one."""
    lab = make_lab(result_backend="cache+memory://")
    deliver, family = Delivery(lab), Family(lab)

    def body(ctx: DurableContext) -> Any:
        return ctx.call(chain(family.kid.s(1), family.plain.s(), group(family.plain.s(), family.plain.s())))

    deliver.suspends(body)
    [child] = family.started()
    family.run(family.kid, child)
    again = celery_durable.get(child, lab.app).rerun().id
    envelope = [_envelope(lab, id_) for id_ in (child, again)]
    promise = next(row.id for row in lab.runtime.promises.of([lab.execution().pk]))
    assert [promise in str(one) for one in envelope] == [True, False]
    assert [CHILD_HEADER in str(one) for one in envelope] == [True, False]
    cancel(lab.app, again, "the test")
    assert lab.runtime.promises.look([promise]).rows[promise].pending


def _envelope(lab: Lab, id: str) -> Any:  # noqa: A002
    stored = lab.operations.payload(lab.execution(id).pk, PayloadKind.ENVELOPE)
    assert stored is not None
    envelope = envelopes.unpack(stored, lab.runtime.envelope_codec)
    return envelope["headers"], envelopes.own_body(envelope)
