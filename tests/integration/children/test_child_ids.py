"""With ``durable_secret`` nobody can tell a child's id before it is sent; and whatever becomes of the secret, a parent
finds the children that it has started.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import celery_durable
from celery_durable import ChildFailed, DurableContext, State
from celery_durable.execution.cancelling import cancel
from celery_durable.identity import child_id, child_of
from celery_durable.store.children import kept_by
from celery_durable.store.tables import promises
from celery_durable.waits.tokens import Tokens
from tests.support.delivery import Delivery, Left
from tests.support.lab import Crash, Lab, everywhere

from .test_children import Family
from .test_taken_child_ids import take

pytestmark = everywhere

OLD, NEW = "the old secret, long", "the new secret, long"

#: What durable_secret is when the parent starts its children, and what later.
CHANGES = pytest.mark.parametrize(
    ("before", "after"),
    [(OLD, [NEW, OLD]), (OLD, NEW), (None, NEW), (OLD, None)],
    ids=["rotated", "replaced", "set", "removed"],
)


class Era:
    """The application, for as long as it has one secret."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.deliver = Delivery(lab)
        self.family = Family(lab)

    def id(self, name: str, number: int = 0, parent: str = "one", lane: str = "") -> str:
        """The id of a child that this parent starts now."""
        return child_of(self.lab.runtime.tokens.child_id("lab", parent, lane, name, number))

    def again(self) -> None:
        self.family.again(self.deliver)


@pytest.fixture
def era(make_lab: Callable[..., Lab]) -> Callable[..., Era]:
    """Begins another one, on the same database."""
    return lambda secret, **settings: Era(make_lab(durable_secret=secret, **settings))


def guess(name: str, number: int = 0, parent: str = "one") -> str:
    """A child's id, for all that is known of it outside."""
    return child_of(child_id("lab", parent, "", name, number))


def test_who_does_not_know_the_secret_cannot_take_a_childs_id(era: Callable[..., Era]) -> None:
    here = era([NEW, OLD])
    for known in (None, OLD, "the new secret, Long", NEW[:-1]):
        take(here.lab, child_of(Tokens(known).child_id("lab", "one", "", "kid", 0)))

    def body(ctx: DurableContext) -> Any:
        return ctx.call(here.family.kid.s(1))

    here.deliver.suspends(body)
    [child] = here.family.started()
    assert child == here.id("kid") != guess("kid")
    assert str(uuid.UUID(child)) == child
    here.family.run(here.family.kid, child)
    assert here.deliver(body) == 5


def test_a_parent_whose_childs_id_was_taken_goes_on_when_there_is_a_secret(era: Callable[..., Era]) -> None:
    here = era(None)
    take(here.lab, guess("kid"))
    with pytest.raises(Left, match="quarantined"):
        here.deliver(lambda ctx: ctx.call(here.family.kid.s(1)))
    assert "set the secret" in here.lab.reason()

    there = era(NEW)
    there.lab.operations.resume("one")
    assert there.deliver.due() == ["one"]
    there.deliver.suspends(lambda ctx: ctx.call(there.family.kid.s(1)))
    [child] = there.family.started()
    there.family.run(there.family.kid, child)
    assert there.deliver(lambda ctx: ctx.call(there.family.kid.s(1))) == 5


@CHANGES
def test_children_that_were_started_are_found_whatever_the_secret_is_now(
    era: Callable[..., Era], before: Any, after: Any
) -> None:
    here = era(before)

    def body(ctx: DurableContext) -> Any:
        both = ctx.gather(here.family.plain.s(1), here.family.kid.s(2))
        with ctx.parallel() as branches:
            branch = branches.submit(lambda: ctx.call(here.family.plain.s(3)))
        return [both, branch.result(), ctx.call(here.family.plain.s(4))]

    here.deliver.suspends(body)
    plain, kid = here.family.started()
    assert [plain, kid] == [here.id("plain"), here.id("kid")]
    here.family.settle(plain, "was there")

    here = era(after)
    here.again()
    here.deliver.suspends(body)
    assert here.family.started() == []
    here.family.run(here.family.kid, kid)
    here.deliver.suspends(body)
    [third] = here.family.started()
    here.family.settle(third, "of a branch")
    here.deliver.suspends(body)
    # What is started now is of the secret of now, and is the second of its name as before.
    [fourth] = here.family.started()
    assert fourth == here.id("plain", 1)
    here.family.settle(fourth, "later")
    assert here.deliver(body) == [["was there", 5], "of a branch", "later"]
    assert here.lab.ledger.count("work") == 1


@CHANGES
def test_a_gather_goes_on_with_those_that_were_not_started(era: Callable[..., Era], before: Any, after: Any) -> None:
    here = era(before)

    def body(ctx: DurableContext) -> Any:
        return ctx.gather(*(here.family.plain.s(number) for number in range(4)), concurrency=2)

    here.deliver.suspends(body)
    first = here.family.started()
    assert first == [here.id("plain", number) for number in range(2)]

    here = era(after)
    for child in first:
        here.family.settle(child, child)
    here.deliver.suspends(body)
    last = here.family.started()
    assert last == [here.id("plain", number) for number in (2, 3)]

    here = era(before)
    for child in last:
        here.family.settle(child, child)
    assert here.deliver(body) == [*first, *last]
    assert here.family.started() == []


@CHANGES
def test_a_replay_says_the_same_of_children_that_were_not_needed(
    era: Callable[..., Era], before: Any, after: Any
) -> None:
    here = era(before)
    seen: list[list[str]] = []

    def body(ctx: DurableContext) -> Any:
        # One ends, one is under way, one was never started.
        got = ctx.gather(*(here.family.plain.s(number) for number in range(3)), until="first", concurrency=2)
        seen.append([one.child_id for one in got if isinstance(one, ChildFailed)])
        seen[-1] += [str(one) for one in got]
        return ctx.call(here.family.kid.s(1))

    here.deliver.suspends(body)
    quick, slow = here.family.started()
    here.family.settle(quick, "quick")
    here.deliver.suspends(body)
    [kid] = here.family.started()

    here = era(after)
    here.family.run(here.family.kid, kid)
    assert here.deliver(body) == 5
    assert seen[0][0] == slow
    assert seen[0] == seen[1]


@CHANGES
def test_a_body_that_changed_finds_the_children_of_the_old_one(
    era: Callable[..., Era], before: Any, after: Any
) -> None:
    here = era(before)
    name, number = "old", 2

    def body(ctx: DurableContext) -> Any:
        ctx.step(name, here.lab.operation(name))
        return ctx.gather(here.family.plain.s(1), here.family.kid.s(number))

    here.deliver.suspends(body)
    plain, kid = here.family.started()
    here.family.settle(plain, "was there")

    here = era(after)
    name, number = "new", 3
    here.again()
    with pytest.raises(Left, match="ambiguous"):
        here.deliver(body)
    assert "has started this child with other arguments" in here.lab.reason()
    number = 2
    here.lab.operations.resume("one")
    assert here.deliver.due() == ["one"]
    here.deliver.suspends(body)
    assert here.lab.execution().generation == 2
    assert here.family.started() == []
    here.family.run(here.family.kid, kid)
    assert here.deliver(body) == ["was there", 5]
    assert here.lab.ledger.count("work") == 1


@CHANGES
def test_a_rerun_shares_children_whatever_the_secret_is_now(era: Callable[..., Era], before: Any, after: Any) -> None:
    here = era(before)
    name = "middle"

    def body(ctx: DurableContext) -> Any:
        shared = ctx.gather(here.family.kid.s(1), here.family.plain.s(1))
        ctx.step(name, here.lab.operation(name))
        return [shared, ctx.call(here.family.plain.s(2))]

    here.deliver.suspends(body)
    kid, plain = here.family.started()
    here.family.run(here.family.kid, kid)
    here.family.settle(plain, "shared")
    here.deliver.suspends(body)
    here.family.settle(here.family.started()[0], "last")
    assert here.deliver(body) == [[5, "shared"], "last"]

    here = era(after)
    again = celery_durable.get("one", here.lab.app).rerun("middle").id
    assert len(here.family.messages()) == 0
    here.deliver.suspends(body, id=again)
    [last] = here.family.started()
    assert last == here.id("plain", 1, again)
    here.family.settle(last, "another")

    # Its body changes; by then the secret is another one once more.
    here = era(before)
    name = "another"
    assert here.deliver(body, id=again) == [[5, "shared"], "another"]
    assert here.lab.execution(again).generation == 2
    assert here.family.messages() == []
    assert here.lab.ledger.count("work") == 1


@CHANGES
def test_children_are_cancelled_whatever_the_secret_is_now(era: Callable[..., Era], before: Any, after: Any) -> None:
    here = era(before)
    here.deliver.suspends(lambda ctx: ctx.call(here.family.kid.s(1)))
    [kid] = here.family.started()
    here = era(after)
    cancel(here.lab.app, "one", "the test")
    assert here.lab.state(kid) is State.CANCELLED


@CHANGES
def test_a_promise_that_the_database_has_lost_is_made_anew_under_its_id(
    era: Callable[..., Era], before: Any, after: Any
) -> None:
    here = era(before)

    def body(ctx: DurableContext) -> Any:
        return ctx.call(here.family.plain.s(1))

    here.deliver.suspends(body)
    [child] = here.family.started()
    here = era(after)
    here.lab.sql(sa.delete(promises))
    here.again()
    here.deliver.suspends(body)
    assert list(here.lab.runtime.promises.look([kept_by(child) or ""]).rows) == [kept_by(child)]
    here.family.settle(child, "late")
    assert here.deliver(body) == "late"


@CHANGES
def test_an_eager_parent_that_was_killed_finds_its_children_whatever_the_secret_is_now(
    era: Callable[..., Era], before: Any, after: Any
) -> None:
    here = era(before, durable_flush_interval=20)  # nobody else commits
    name = "first"

    def body(ctx: DurableContext) -> Any:
        ctx.step(name, here.lab.operation(name))
        return ctx.gather(here.family.kid.s(1), here.family.kid.s(2), dying.s())

    known: list[str] = []

    def dies(task: Any) -> None:
        known.extend(here.lab.entries())
        raise Crash

    # A child dies, and with it its parent.
    dying = here.lab.task("dying", dies)
    here.lab.crash(body)
    assert known == ["0 RESULT first", "1 CALL kid, dying"], "they are on disk before the first one runs"

    here = era(after)
    dying = here.lab.task("dying", lambda task: 7)
    for one in here.lab.operations.find():
        here.lab.lose_lease(one.id)
    name = "changed"
    assert here.lab.run(body) == [5, 5, 7]
    assert here.lab.execution().generation == 2
    assert here.lab.ledger.count("work") == 2
