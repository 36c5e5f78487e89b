"""The first of several promises and timers, and so many of them: decided once, by time, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import celery_durable
from celery_durable import DurableContext, Promise, PromiseRejected, PromiseTimeout
from celery_durable.identity import wait_print
from celery_durable.store.tables import promises
from celery_durable.waits.wait import Came, Wait
from tests.integration.asking import DAY, Asking
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab, everywhere

# -- select -----------------------------------------------------------------------------------------------------


@everywhere
def test_select_takes_the_first_and_remembers_which_it_was(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    seen: list[Any] = []

    def body(ctx: DurableContext) -> None:
        promise = ctx.promise("approval")
        asking.made.append(promise)
        late = ctx.timer(days=2)
        seen.append(ctx.select(approval=promise, late=late))
        seen.append(ctx.select(approval=promise, late=late))

    deliver.suspends(body)
    deliver.elapse(2 * DAY)
    # The approval comes too late, and before anybody has looked.
    asking.resolve("at last")
    deliver(body)
    assert seen == [("late", None), ("late", None)]
    assert (seen[0].key, seen[0].value) == ("late", None)


@everywhere
@pytest.mark.parametrize("order", ["timer first", "promise first"])
def test_a_timer_shares_the_commit_of_the_promise_behind_it(make_lab: Callable[..., Lab], order: str) -> None:
    """What the manual advises: a kill after that does not set it anew."""
    lab = make_lab(durable_flush_interval=20)  # nobody else commits
    on_disk: list[str] = []

    def body(ctx: DurableContext) -> Any:
        late = ctx.timer(days=2) if order == "timer first" else None
        promise = ctx.promise("approval")
        late = late or ctx.timer(days=2)
        on_disk[:] = lab.entries()
        return ctx.select(approval=promise, late=late)

    Delivery(lab).suspends(body)
    kept = ["0 TIMER timer", "1 PROMISE approval"] if order == "timer first" else ["0 PROMISE approval"]
    assert on_disk == kept
    # At the latest with the suspension.
    assert "TIMER" in " ".join(lab.entries())


@everywhere
def test_what_came_earlier_was_first_though_both_are_seen_together(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        asking.made.append(promise)
        other = ctx.promise("other", timeout=3 * DAY)
        return ctx.select(late=ctx.timer(days=2), approval=promise, other=other)

    deliver.suspends(body)
    deliver.elapse(DAY)
    asking.resolve("in time")
    deliver.elapse(5 * DAY)
    assert deliver(body) == ("approval", "in time")


def test_a_replay_does_not_decide_again(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    seen: list[Any] = []

    def body(ctx: DurableContext) -> None:
        promise = ctx.promise("approval")
        asking.made.append(promise)
        seen.append(ctx.select(approval=promise, late=ctx.timer(hours=1)))
        ctx.sleep(DAY)

    deliver.suspends(body)
    deliver.elapse(3600)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    asking.resolve("late")
    lab.sql(sa.update(promises).values(settled_at=1))
    deliver.elapse(DAY)
    deliver.resumes(body)
    assert seen == [("late", None)] * 2


def test_select_raises_what_came_first(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        asking.made.append(promise)
        return ctx.select(approval=promise, late=ctx.timer(days=2))

    deliver.suspends(body)
    asking.reject("no")
    with pytest.raises(PromiseRejected):
        deliver(body)


def test_a_select_of_something_else_is_a_divergence(make_lab: Any) -> None:
    lab = make_lab(durable_on_divergence="park")
    deliver = Delivery(lab)

    def body(ctx: DurableContext, *keys: str) -> Any:
        promise, timer = ctx.promise("approval"), ctx.timer(days=2)
        return ctx.select(**dict(zip(keys, (promise, timer), strict=True)))

    deliver.suspends(body, "a", "b")
    lab.wake()
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="quarantined"):
        deliver(body, "b", "a")
    assert [line.strip() for line in lab.reason().splitlines()[:3]] == [
        "[CD101] execution one diverged from its journal at position 2: another wait was recorded.",
        "recorded   a, b (wait)",
        "requested  b, a (wait)",
    ]


@everywhere
def test_a_promise_expires_at_its_time_whenever_that_is_seen(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.select(late=ctx.timer(hours=2), approval=ctx.promise("approval", timeout=3600))

    deliver.suspends(body)
    deliver.elapse(3 * 3600)
    with pytest.raises(PromiseTimeout):
        deliver.resumes(body)


def test_a_timer_runs_while_the_body_works(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> Any:
        timer = ctx.timer(100)
        timer._since -= 90  # as if what comes now had taken so long
        ctx.step("work", len, "")
        return ctx.select(late=timer)

    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 0 < claims.next_ms <= 10_000


@everywhere
def test_a_timer_can_be_waited_for_and_runs_from_its_setting(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> str:
        timer = ctx.timer(minutes=90)
        ctx.sleep(3600)
        ctx.wait(timer)
        return "done"

    deliver.suspends(body)
    deliver.elapse(3600)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 1700 < claims.next_ms / 1000 <= 1800
    deliver.elapse(1800)
    assert deliver.resumes(body) == "done"


# -- several at once: what other parts of the library wait with ---------------------------------------------------


class Some(Wait):
    """So many of several promises."""

    def __init__(self, made: list[Promise], needed: int) -> None:
        super().__init__("some", wait_print("some"), promises=[p.id for p in made], needed=needed)

    def decide(self, look: Any, run: Any) -> Came | None:
        values = [run.decode(row.payload, "") for row in look.rows.values() if not row.pending]
        return Came(sorted(values)) if len(values) >= self.needed else None


@everywhere
@pytest.mark.parametrize("needed", [1, 2, 4])
def test_an_execution_that_needs_several_is_woken_once_by_the_last_of_them(
    lab: Lab, deliver: Delivery, needed: int
) -> None:
    made: list[Promise] = []

    def body(ctx: DurableContext) -> Any:
        made[:] = [ctx.promise("part", timeout=DAY) for _ in range(4)]
        return ctx._wait(Some(made, needed))

    deliver.suspends(body)
    for number in range(needed):
        assert lab.execution().sends == 0, "it was woken too early"
        celery_durable.resolve(made[number].id, made[number].token, number, app=lab.app)
    assert lab.execution().sends == 1
    assert deliver(body) == list(range(needed))


def test_what_is_still_needed_is_counted_anew_when_it_waits_again(lab: Lab, deliver: Delivery) -> None:
    made: list[Promise] = []

    def body(ctx: DurableContext) -> Any:
        made[:] = [ctx.promise("part") for _ in range(3)]
        return ctx._wait(Some(made, 3))

    def keep(number: int) -> None:
        celery_durable.resolve(made[number].id, made[number].token, number, app=lab.app)

    deliver.suspends(body)
    keep(0)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    keep(1)
    assert lab.execution().sends == 0
    keep(2)
    assert lab.execution().sends == 1
    assert deliver(body) == [0, 1, 2]


def test_one_that_a_branch_needs_alone_wakes_though_another_branch_needs_more(lab: Lab, deliver: Delivery) -> None:
    made: list[Promise] = []

    def alone(ctx: DurableContext) -> Any:
        return ctx.wait(made[0])

    def together(ctx: DurableContext) -> Any:
        return ctx._wait(Some(made, 2))

    def body(ctx: DurableContext) -> Any:
        made[:] = [ctx.promise("part") for _ in range(2)]
        with ctx.parallel() as branches:
            found = [branches.submit(together, ctx), branches.submit(alone, ctx)]
        return [branch.result() for branch in found]

    deliver.suspends(body)
    celery_durable.resolve(made[0].id, made[0].token, 0, app=lab.app)
    assert lab.execution().sends == 1
    deliver.suspends(body)
    celery_durable.resolve(made[1].id, made[1].token, 1, app=lab.app)
    assert deliver(body) == [[0, 1], 0]
