"""What can be undone is undone or parked: a body that changed, or ends before it comes there, forgets nothing."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import Intent, OnAmbiguous, Retry, StepDescriptor
from celery_durable.store.records import State
from tests.support.lab import Crash, Lab, everywhere

pytestmark = everywhere


class Stop(Exception):
    """What the bodies fail with."""


def guarded(lab: Lab, name: str, **options: Any) -> StepDescriptor:
    return StepDescriptor.guarded(
        name,
        Intent.MONEY_MOVING,
        on_ambiguous=OnAmbiguous.FAIL,
        compensate=lambda result, *args: lab.ledger.fire(f"undo {name}"),
        **options,
    )


def plain(lab: Lab, name: str) -> StepDescriptor:
    return StepDescriptor(name, compensate=lambda result, *args: lab.ledger.fire(f"undo {name}"))


def do(lab: Lab, context: Any, what: StepDescriptor) -> None:
    context.step(what, lambda: lab.ledger.fire(what.name))


def two_done(lab: Lab) -> Any:
    """A charge and a hotel, and a crash."""

    def body(context: Any) -> None:
        do(lab, context, guarded(lab, "charge"))
        do(lab, context, plain(lab, "hotel"))
        do(lab, context, guarded(lab, "last"))
        raise Crash

    return body


def doubtful(lab: Lab) -> StepDescriptor:
    """A payment of which nobody knows whether it happened.

    :returns: its step.
    """
    pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)
    operate = lab.operation("pay", None, Crash())
    lab.crash(lambda context: context.step(pay, operate))
    return pay


# -- in one generation ----------------------------------------------------------------------------------------------


def test_a_body_that_fails_before_it_comes_to_what_it_did_is_parked(lab: Lab) -> None:
    trouble = [Stop("no template")]

    def body(context: Any) -> None:
        do(lab, context, guarded(lab, "charge"))
        if lab.ledger.count() > 2 and trouble:
            raise trouble.pop()
        do(lab, context, plain(lab, "hotel"))
        do(lab, context, guarded(lab, "last"))
        if lab.ledger.count("crashed") == 0:
            lab.ledger.fire("crashed")
            raise Crash
        raise Stop("sold out")

    lab.crash(body)
    reason = lab.parks(body)
    assert lab.state() is State.QUARANTINED
    assert reason == (
        "its body ended before it reached all that its journal holds (code CD106): step 'hotel' (position 1, "
        "generation 1) can be undone, step 'last' (position 2, generation 1) can be undone. Without them nobody knows "
        "how to undo that, so nothing was undone. Fix what keeps the body from asking for it, then: celery durable "
        "resume one. Or undo it by hand, and then: celery durable cancel one --no-undo"
    )
    lab.operations.resume("one")
    with pytest.raises(Stop, match="sold out"):
        lab.run(body)
    assert [n for n in lab.ledger.names() if n.startswith("undo")] == ["undo last", "undo hotel", "undo charge"]


def test_a_cancelled_body_that_fails_before_it_comes_to_what_it_did_is_parked(lab: Lab) -> None:
    lab.crash(two_done(lab))
    lab.operations.cancel("one", "not wanted")
    lab.lose_lease()

    def body(context: Any) -> None:
        do(lab, context, guarded(lab, "charge"))
        raise Stop("no template")

    assert "step 'hotel' (position 1, generation 1) can be undone" in lab.parks(body)
    assert lab.state() is State.QUARANTINED


def test_a_doubt_that_a_failing_body_does_not_come_to_is_parked(lab: Lab) -> None:
    doubtful(lab)

    def body(context: Any) -> None:
        raise Stop("no template")

    assert "step 'pay' (position 0, generation 1) is in doubt" in lab.parks(body)
    assert lab.state() is State.QUARANTINED


def test_what_cannot_be_undone_does_not_keep_a_body_from_failing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    def before(context: Any) -> None:
        do(lab, context, plain(lab, "hotel"))
        context.step("look", lab.operation("look"))
        context.step(StepDescriptor.guarded("sure", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL), lambda: None)
        raise Crash

    def after(context: Any) -> None:
        do(lab, context, plain(lab, "hotel"))
        raise Stop("no template")

    lab.crash(before)
    with pytest.raises(Stop):
        lab.run(after)
    assert lab.ledger.names() == ["hotel", "look", "undo hotel"]
    assert "ends before its body reached all that its journal holds (code CD106): step 'look'" in caplog.text


def test_what_was_to_be_called_on_failure_is_not_forgotten(lab: Lab) -> None:
    def release() -> None:
        lab.ledger.fire("release")

    def before(context: Any) -> None:
        context.on_failure(release)
        raise Crash

    lab.crash(before)

    def after(context: Any) -> None:
        raise Stop("no template")

    assert "release() had to be called" in lab.parks(after)


def test_a_branch_that_a_deploy_removes_is_noticed_where_nothing_else_was_recorded(lab: Lab) -> None:
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)

    def before(context: Any) -> None:
        with context.parallel(max_workers=1) as branches:
            branches.submit(lambda: None)
            branches.submit(context.step, charge, lab.operation("charge", None))
            raise Crash

    def after(context: Any) -> str:
        with context.parallel(max_workers=1) as branches:
            branches.step("new", lab.operation("new"))
        return "done"

    lab.crash(before)
    assert lab.run(after) == "done"
    # As for any divergence, the body has begun anew, where nothing could be undone.
    assert lab.execution().generation == 2
    assert lab.ledger.names() == ["charge", "new", "new"]


def test_a_branch_that_a_deploy_removes_and_that_can_be_undone_is_parked(lab: Lab) -> None:
    def before(context: Any) -> None:
        with context.parallel(max_workers=1) as branches:
            branches.submit(lambda: None)
            branches.submit(do, lab, context, guarded(lab, "charge"))
            raise Crash

    def after(context: Any) -> str:
        with context.parallel(max_workers=1) as branches:
            branches.step("new", lab.operation("new"))
        return "done"

    lab.crash(before)
    reason = lab.parks(after)
    assert (
        "its body no longer asks for steps that it once ran: step 'charge' (position 0.1/0, generation 1) can be "
        "undone." in reason
    )
    assert lab.execution().generation == 1
    assert lab.ledger.names() == ["charge", "new"]


# -- after a divergence ---------------------------------------------------------------------------------------------


def test_what_the_new_body_does_not_ask_for_any_more_is_parked(lab: Lab) -> None:
    lab.crash(two_done(lab))

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        raise Stop("sold out")

    reason = lab.parks(after)
    assert lab.state() is State.QUARANTINED
    assert reason.startswith(
        "its body changed, and no longer asks for steps that it once ran: step 'charge' (position 0, generation 1) "
        "can be undone, step 'hotel' (position 1, generation 1) can be undone, step 'last' (position 2, generation 1) "
        "can be undone."
    )
    assert not [n for n in lab.ledger.names() if n.startswith("undo")]


def test_what_the_new_body_asks_for_too_is_undone_once(lab: Lab) -> None:
    lab.crash(two_done(lab))

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        do(lab, context, guarded(lab, "charge"))
        do(lab, context, plain(lab, "hotel"))
        do(lab, context, guarded(lab, "last"))
        raise Stop("sold out")

    with pytest.raises(Stop, match="sold out"):
        lab.run(after)
    names = lab.ledger.names()
    assert names.count("charge") == 1
    assert [n for n in names if n.startswith("undo")] == ["undo last", "undo hotel", "undo charge"]


def test_an_execution_that_diverged_is_not_just_ended_by_a_cancellation(lab: Lab) -> None:
    lab.crash(two_done(lab))

    def after(context: Any) -> None:
        context.step("check", lab.operation("check", None, Crash()))

    lab.crash(after)
    assert lab.execution().generation == 2
    lab.operations.cancel("one", "not wanted")
    assert lab.state() is not State.CANCELLED
    lab.lose_lease()
    assert "its body changed, and no longer asks for steps that it once ran" in lab.parks(after)
    assert lab.state() is State.QUARANTINED


def test_a_doubt_that_the_new_body_does_not_ask_for_is_parked(lab: Lab) -> None:
    doubtful(lab)

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        raise Stop("sold out")

    assert "step 'pay' (position 0, generation 1) is in doubt" in lab.parks(after)


def test_a_new_body_that_completes_does_not_forget_what_is_in_doubt(lab: Lab) -> None:
    pay = doubtful(lab)

    def after(context: Any) -> str:
        context.step("check", lab.operation("check"))
        return "done"

    reason = lab.parks(after)
    assert lab.state() is State.QUARANTINED
    assert "ended without asking for what is in doubt: step 'pay' (position 0, generation 1) is in doubt" in reason

    def asks(context: Any) -> str:
        context.step("check", lab.operation("check"))
        return str(context.step(pay, lab.operation("pay")))

    # A body that asks for it again has its policy asked.
    lab.operations.resume("one")
    assert "pay" in lab.parks(asks)
    assert lab.state() is State.AMBIGUOUS
    assert lab.ledger.names() == ["pay", "check"]


def test_a_new_body_that_completes_undoes_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.crash(two_done(lab))

    def after(context: Any) -> str:
        context.step("check", lab.operation("check"))
        return "done"

    assert lab.run(after) == "done"
    assert lab.state() is State.COMPLETED
    assert lab.ledger.names() == ["charge", "hotel", "last", "check"]
    [told] = [
        record.message for record in caplog.records if "no longer asks for steps that it ran before" in record.message
    ]
    assert "step 'charge' (position 0, generation 1) can be undone, step 'hotel'" in told


def test_a_retry_of_a_step_tells_what_it_did_once(lab: Lab) -> None:
    """Steps of one name are counted: what the new body did as often is all told."""

    def before(context: Any) -> None:
        for _ in range(2):
            do(lab, context, plain(lab, "hotel"))
        do(lab, context, guarded(lab, "last"))
        raise Crash

    def after(context: Any) -> None:
        context.step(StepDescriptor("check", retry=Retry(2, backoff=0)), lab.operation("check", None, Stop("again")))
        do(lab, context, plain(lab, "hotel"))
        do(lab, context, guarded(lab, "last"))
        raise Stop("sold out")

    lab.crash(before)
    reason = lab.parks(after)
    assert "step 'hotel' (position 1, generation 1) can be undone." in reason
    assert "position 0" not in reason
