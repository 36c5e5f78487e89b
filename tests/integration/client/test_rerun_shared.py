"""What a rerun shares is another execution's: it is neither undone nor done again, whatever becomes of the rerun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, Effect, OnAmbiguous, State, StepDescriptor, WrongState
from celery_durable.store.records import EntryKind
from tests.integration.charging import charging
from tests.support.lab import Crash, everywhere

from .test_rerun import Works


class Broken(Exception):
    """The mail server is down."""


@pytest.fixture
def works(make_lab: Callable[..., Any]) -> Works:
    made: Works = make_lab(Works)
    return made


class Order:
    """Two branches, a charge and a mail, all but the mail with compensations; an undo of the body's own around them."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self.load = "load"
        self.parcel = "parcel"
        self.fails = False

    def __call__(self, ctx: DurableContext) -> str:
        works = self.works
        ctx.on_failure(works.operation("undo of all"))
        ctx.step(self.load, works.operation(self.load))
        with ctx.parallel() as branches:
            for name in ("hotel", "flight"):
                branches.submit(self.step, ctx, name)
        charge = charging(OnAmbiguous.RERUN, compensate=works.operation("undo charge"))
        ctx.step(charge, works.operation("charge", "r1"), 5)
        ctx.on_failure(works.operation("undo before the parcel"))
        self.step(ctx, self.parcel)
        ctx.on_failure(works.operation("undo after the parcel"))
        if self.fails:
            raise Broken
        return "done"

    def step(self, ctx: DurableContext, name: str) -> None:
        undo = self.works.operation(f"undo {name}")
        descriptor = StepDescriptor(name, Effect.AT_LEAST_ONCE, compensate=undo)
        ctx.step(descriptor, self.works.operation(name, name))


#: Position of the parcel.
CUT = 3


@everywhere
def test_what_a_completed_execution_did_is_not_undone_by_its_reruns(works: Works) -> None:
    order = Order(works)
    first = works.call(order)
    order.fails = True
    for number in range(3):
        again = first.rerun("parcel", durable_id=f"again-{number}")
        with pytest.raises(Broken):
            works.run(order, id=again.id)
        assert again.status().state is State.FAILED
    counts = {name: works.ledger.count(name) for name in works.ledger.names()}
    assert counts == {
        **dict.fromkeys(("load", "hotel", "flight", "charge"), 1),
        **dict.fromkeys(("undo parcel", "undo after the parcel"), 3),
        "parcel": 4,
    }
    assert first.status().state is State.COMPLETED


@everywhere
def test_what_is_shared_stays_shared_when_the_rest_begins_anew(works: Works) -> None:
    """A divergence behind the cut: the next generation begins with the same steps, done by the same execution."""
    order = Order(works)
    again = works.call(order).rerun("parcel")

    def dies(ctx: DurableContext) -> None:
        order(ctx)
        raise Crash

    works.crash(dies, id=again.id)
    order.parcel = "letter"
    order.fails = True
    # The parcel is the rerun's own, and the new body knows nothing of it. What is shared is nothing to it.
    reason = works.parks(order, id=again.id)
    assert (
        "no longer asks for steps that it once ran: step 'parcel' (position 3, generation 1) can be undone. Without"
        in reason
    )
    assert works.execution(again.id).generation == 2
    done = works.ledger.names()
    assert {name: done.count(name) for name in ("load", "hotel", "flight", "charge", "letter")} == {
        **dict.fromkeys(("load", "hotel", "flight", "charge"), 1),
        "letter": 1,
    }
    assert not {"undo charge", "undo hotel", "undo flight", "undo of all"} & set(done)
    assert done.count("undo letter") == 0
    steps = [(s.position, s.name) for s in again.steps() if not s.position.startswith("#")]
    assert steps == [("0", "load"), ("1.0/0", "hotel"), ("1.1/0", "flight"), ("2", "charge"), ("3", "letter")]


@everywhere
def test_a_body_that_differs_within_what_it_shares_is_parked_and_does_nothing(works: Works) -> None:
    order = Order(works)
    first = works.call(order)
    before = works.ledger.names()
    again = first.rerun("parcel")
    order.load = f"load for {again.id}"[:40]
    with pytest.raises(Exception, match="is a rerun of one from position 3, and asks for other steps"):
        works.run(order, id=again.id)
    assert (again.status().state, works.execution(again.id).generation) == (State.QUARANTINED, 1)
    assert works.ledger.names() == before
    # Once the body is mended, it goes on.
    order.load = "load"
    again.resume()
    assert works.run(order, id=again.id) == "done"
    assert works.ledger.names() == [*before, "parcel"]


@everywhere
def test_a_body_that_ends_within_what_it_shares_is_parked(works: Works) -> None:
    first = works.call(Order(works))
    again = first.rerun("parcel")
    works.parks(lambda ctx: ctx.step("load", works.operation("load")), id=again.id)
    assert again.status().state is State.QUARANTINED
    assert works.ledger.count("load") == 1


@everywhere
def test_a_crash_while_a_rerun_is_undone_undoes_no_more_than_its_own(works: Works) -> None:
    order = Order(works)
    again = works.call(order).rerun("parcel")
    order.fails = True
    dies = works.operation("undo parcel", None, Crash())
    order.step = lambda ctx, name: ctx.step(  # type: ignore[method-assign]
        StepDescriptor(name, Effect.AT_LEAST_ONCE, compensate=dies if name == "parcel" else works.operation("never")),
        works.operation(name, name),
    )
    works.crash(order, id=again.id)
    with pytest.raises(Broken):
        works.run(order, id=again.id)
    undone = [name for name in works.ledger.names() if name.startswith("undo") or name == "never"]
    assert undone == ["undo after the parcel", "undo parcel", "undo parcel"]


@everywhere
def test_a_rerun_that_did_nothing_of_its_own_is_cancelled_at_once(works: Works) -> None:
    order = Order(works)
    again = works.call(order).rerun(CUT)

    def dies(ctx: DurableContext) -> None:
        ctx.on_failure(works.operation("undo of all"))
        ctx.step("load", works.operation("load"))
        raise Crash

    works.crash(dies, id=again.id)
    again.cancel("not wanted")
    assert again.status().state is State.CANCELLED
    assert not [name for name in works.ledger.names() if name.startswith("undo")]


@everywhere
def test_coroutines_share_too(works: Works) -> None:
    fails: list[bool] = []
    undo = works.operation("undo charge")

    async def charge(amount: int) -> str:
        works.ledger.fire("charge")
        return "r1"

    async def body(ctx: DurableContext) -> None:
        await ctx.step(charging(OnAmbiguous.RERUN, compensate=undo), charge, 5)
        ctx.step("mail", works.operation("mail"))
        if fails:
            raise Broken

    again = works.call(body).rerun("mail")
    fails.append(True)
    with pytest.raises(Broken):
        works.run(body, id=again.id)
    assert works.ledger.names() == ["charge", "mail", "mail"]


def test_a_rerun_of_a_failed_rerun_shares_what_the_first_one_did(works: Works) -> None:
    """What the second one did was undone; what it shares was not."""
    order = Order(works)
    second = works.call(order).rerun("parcel")
    order.fails = True
    with pytest.raises(Broken):
        works.run(order, id=second.id)
    order.fails = False
    with pytest.raises(WrongState, match="was undone"):
        second.rerun(CUT + 1)
    third = second.rerun(CUT)
    assert works.run(order, id=third.id) == "done"
    assert {works.ledger.count(name) for name in ("load", "hotel", "flight", "charge")} == {1}


def test_what_may_still_be_undone_is_not_shared(works: Works) -> None:
    """A parked execution that is cancelled, or goes on and fails, would undo what its rerun counts on."""
    order = Order(works)

    def parks(ctx: DurableContext) -> None:
        order(ctx)
        ctx.step(charging(OnAmbiguous.FAIL), works.operation("second", None, TimeoutError()), 6)

    first = works.call(parks)
    assert first.status().state is State.AMBIGUOUS
    with pytest.raises(WrongState, match="nothing can be shared until it has ended"):
        first.rerun("parcel")
    first.rerun()


def test_folding_leaves_what_is_shared_by_itself(make_lab: Callable[..., Any]) -> None:
    """A pack that reached over the cut could not be left out when the rest begins anew."""
    works: Works = make_lab(Works, durable_max_steps=20)
    last = ["end"]
    crash = [False]

    def body(ctx: DurableContext) -> None:
        for number in range(19):
            ctx.step(f"s{number}", works.operation("step"))
        ctx.step(last[0], works.operation(last[0]))
        if crash[0]:
            raise Crash

    again = works.call(body).rerun("s5")
    crash[0] = True
    works.crash(body, id=again.id)
    packs = [(r.position, r.scope) for r in works.rows(again.id) if r.kind == EntryKind.CHECKPOINT]
    assert packs
    crash[0] = False
    last[0] = "another"
    works.run(body, id=again.id)
    assert works.execution(again.id).generation == 2
    # 5 are shared by three generations, 14 were done three times.
    assert works.ledger.count("step") == 5 + 3 * 14
    assert [s.name for s in celery_durable.get(again.id, works.app).steps()][:6] == [f"s{n}" for n in range(6)]
