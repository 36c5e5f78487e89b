"""What a body did is undone when it fails: backwards, each thing once, also across crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from celery.exceptions import Reject, TimeLimitExceeded

from celery_durable import (
    ConfigurationError,
    Effect,
    Intent,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    WrongState,
    get,
    guarded,
    step,
)
from celery_durable.common import faults
from celery_durable.replay.saga import Saga
from celery_durable.store.records import Batch, EntryKind, Opened, OpenRequest, PayloadKind, State, StoredPayload
from celery_durable.store.tables import executions
from tests.support.lab import Crash, Lab, everywhere

pytestmark = everywhere


class Stop(Exception):
    """What the bodies fail with."""


def booking(
    lab: Lab, name: str, *crashes: BaseException | None, effect: Any = Effect.IDEMPOTENT, **options: Any
) -> Any:
    """A step whose undo the ledger sees too; the undo raises ``crashes`` in turn."""
    cancel = lab.operation(f"cancel {name}", None, *crashes)
    guard = None if isinstance(effect, Effect) else effect
    kind = effect if guard is None else Effect.EXACTLY_ONCE_GUARDED
    descriptor = StepDescriptor(name, kind, guard, compensate=lambda result, *args: cancel(result, *args))
    operate = lab.operation(name, f"{name}-1")
    return lambda context, *args: context.step(descriptor, operate, *args)


def test_a_failure_undoes_what_was_done_backwards(lab: Lab) -> None:
    hotel, flight = booking(lab, "hotel"), booking(lab, "flight")

    def body(context: Any) -> None:
        hotel(context, "Rome", 2)
        context.on_failure(lab.operation("tell"), "sorry")
        flight(context, "FCO")
        context.step("look", lab.operation("look"))
        raise Stop("no car")

    with pytest.raises(Stop, match="no car"):
        lab.run(body)
    assert lab.ledger.names() == ["hotel", "flight", "look", "cancel flight", "tell", "cancel hotel"]
    # A compensation gets the result, and what its step got.
    assert [e["args"] for e in lab.ledger.entries() if e["name"].startswith("cancel")] == [
        ["flight-1", "FCO"],
        ["hotel-1", "Rome", 2],
    ]
    assert lab.state() is State.FAILED
    assert [e for e in lab.entries() if e.startswith("#undo")] == [
        "#undo/0 INTENT undo flight",
        "#undo/0 RESULT undo flight",
        "#undo/1 INTENT undo tell",
        "#undo/1 RESULT undo tell",
        "#undo/2 INTENT undo hotel",
        "#undo/2 RESULT undo hotel",
    ]


def test_a_body_that_succeeds_undoes_nothing(lab: Lab) -> None:
    hotel = booking(lab, "hotel")
    assert lab.run(lambda context: hotel(context)) == "hotel-1"
    assert lab.ledger.names() == ["hotel"]


def test_what_failed_itself_is_not_undone_and_what_was_handled_undoes_nothing(lab: Lab) -> None:
    hotel = booking(lab, "hotel")
    fails = StepDescriptor("fails", compensate=lambda result: lab.ledger.fire("never"))
    broken = lab.operation("fails", None, Stop("full"))

    def body(context: Any) -> str:
        hotel(context)
        try:
            context.step(fails, broken)
        except Stop:
            return "done without"
        return "done"

    assert lab.run(body) == "done without"
    assert lab.ledger.names() == ["hotel", "fails"]


def test_a_retry_undoes_nothing_until_it_is_the_last(lab: Lab) -> None:
    hotel = booking(lab, "hotel")

    def body(context: Any) -> None:
        hotel(context)
        raise Stop("not now")

    lab._body = body
    task = lab.task(
        "patient",
        lambda task: lab._body(task.durable),
        autoretry_for=(Stop,),
        max_retries=2,
        default_retry_delay=0,
    )
    with pytest.raises(Stop):
        lab.apply(task)
    assert lab.ledger.names() == ["hotel", "cancel hotel"]


@pytest.mark.parametrize("crashed", ["cancel flight", "cancel hotel"])
def test_a_crash_while_undoing_goes_on_where_it_was(lab: Lab, crashed: str) -> None:
    crashes = {name: (Crash(),) if name == crashed else () for name in ("cancel hotel", "cancel flight")}
    hotel = booking(lab, "hotel", *crashes["cancel hotel"])
    flight = booking(lab, "flight", *crashes["cancel flight"])
    car = lab.operation("car", "car-1", Stop("no car"))

    def body(context: Any) -> str:
        hotel(context)
        flight(context)
        return context.step("car", car)

    lab.crash(body)
    # The car would be there now. But it was decided to undo.
    with pytest.raises(Stop, match="no car"):
        lab.run(body)
    assert lab.state() is State.FAILED
    # In doubt, it is undone once more, under the same key.
    expected = ["hotel", "flight", "car", "cancel flight", "cancel hotel"]
    expected.insert(expected.index(crashed), crashed)
    assert lab.ledger.names() == expected
    assert len({row.key for row in lab.rows() if row.scope == "#undo" and row.name == f"undo {crashed[7:]}"}) == 1


def test_a_crash_before_the_decision_tries_the_body_again(lab: Lab) -> None:
    hotel = booking(lab, "hotel", effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
    errors: list[BaseException] = [Crash(), Stop("no")]

    def body(context: Any) -> None:
        hotel(context)
        raise errors.pop(0)

    lab.crash(body)
    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names() == ["hotel", "cancel hotel"]


def test_a_step_function_as_compensation_keeps_its_policy_and_its_retries(lab: Lab) -> None:
    refund = lab.operation("refund", "refunded", OSError("try again"), OSError("and again"))

    moving = guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, definite=(OSError,))

    @step(effect=moving, retry=Retry(3, backoff=0))
    def give_back(receipt: str, amount: int) -> str:
        return str(refund(receipt, amount))

    pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, compensate=give_back)

    def body(context: Any) -> None:
        context.step(pay, lab.operation("pay", "receipt"), 9)
        raise Stop("out of stock")

    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names() == ["pay", "refund", "refund", "refund"]


def test_a_compensation_in_doubt_waits_for_an_operator(lab: Lab) -> None:
    @step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
    def give_back(receipt: str) -> None:
        lab.ledger.fire("refund")
        raise Crash

    hotel = booking(lab, "hotel")
    pay = StepDescriptor("pay", compensate=give_back)

    def body(context: Any) -> None:
        hotel(context)
        context.step(pay, lab.operation("pay", "receipt"))
        raise Stop("no")

    lab.crash(body)
    assert "step 'undo pay' (position #undo/0)" in lab.parks(body)
    assert lab.state() is State.AMBIGUOUS
    lab.settle("#undo/0", EntryKind.RESULT)
    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names() == ["hotel", "pay", "refund", "cancel hotel"]


def test_a_compensation_that_fails_keeps_what_is_left_until_somebody_has_put_it_right(lab: Lab) -> None:
    hotel = booking(lab, "hotel")
    flight = booking(lab, "flight", ValueError("airline down"), None)

    def body(context: Any) -> None:
        hotel(context)
        flight(context)
        raise Stop("no")

    reason = lab.parks(body)
    assert reason == (
        "a compensation failed with ValueError (its message: celery durable show --reveal). What is left to undo "
        "waits for it. Fix the cause, then: celery durable resume"
    )
    assert lab.state() is State.QUARANTINED
    assert lab.ledger.names() == ["hotel", "flight", "cancel flight"]
    lab.operations.resume("one")
    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names()[3:] == ["cancel flight", "cancel hotel"]


def test_branches_are_undone_by_their_place_not_by_their_speed(lab: Lab) -> None:
    bookings = [booking(lab, f"room {n}") for n in range(3)]
    last = booking(lab, "last")

    def body(context: Any) -> None:
        with context.parallel() as branches:
            for book in bookings:
                branches.submit(book, context)
        last(context)
        raise Stop("no")

    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names()[4:] == ["cancel last", "cancel room 2", "cancel room 1", "cancel room 0"]


def test_coroutines_are_undone_too(lab: Lab) -> None:
    hotel = booking(lab, "hotel")

    async def give_back(result: str) -> None:
        await asyncio.sleep(0)
        lab.ledger.fire(f"give back {result}")

    pay = StepDescriptor("pay", compensate=give_back)

    async def charge() -> str:
        lab.ledger.fire("charge")
        return "receipt"

    async def body(context: Any) -> None:
        hotel(context)
        await context.step(pay, charge)
        context.on_failure(give_back, "nothing")
        raise Stop("no")

    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.names() == ["hotel", "charge", "give back nothing", "give back receipt", "cancel hotel"]


def test_a_rejected_message_is_a_failure_too(lab: Lab) -> None:
    hotel = booking(lab, "hotel")

    def body(context: Any) -> None:
        hotel(context)
        raise Reject("no", requeue=False)

    lab._body = body
    lab.job.apply(task_id="one")
    assert lab.ledger.names() == ["hotel", "cancel hotel"]
    assert lab.state() is State.FAILED


# -- cancelling -------------------------------------------------------------------------------------------------


def test_a_cancelled_execution_that_waits_is_undone_by_whoever_opens_it_next(lab: Lab) -> None:
    hotel = booking(lab, "hotel")
    go_on = lab.operation("go on", None, Crash(), None)

    def body(context: Any) -> None:
        hotel(context)
        context.step("go on", go_on)
        context.step("more", lab.operation("more"))

    lab.crash(body)
    lab.sql(sa.update(executions).values(state="pending"))
    lab.operations.cancel("one", "not wanted")
    assert lab.state() is State.PENDING
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.reason() == "not wanted"
    assert lab.ledger.names() == ["hotel", "go on", "cancel hotel"]


def test_a_running_body_learns_of_its_cancellation_with_its_next_commit(lab: Lab) -> None:
    charge = StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)
    hotel = booking(lab, "hotel", effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))

    def body(context: Any) -> None:
        hotel(context)
        lab.operations.cancel("one", "not wanted")
        assert lab.state() is State.RUNNING
        context.step(charge, lab.operation("charge"))

    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel", "cancel hotel"]


def test_the_step_under_way_is_finished_and_undone(lab: Lab) -> None:
    cancelled = lab.operation("cancel charge")

    def operate() -> str:
        lab.ledger.fire("charge")
        lab.operations.cancel("one", "not wanted")
        return "receipt"

    charge = StepDescriptor.guarded(
        "charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL, compensate=lambda result: cancelled(result)
    )

    def body(context: Any) -> None:
        context.step(charge, operate)
        context.step("more", lab.operation("more"))

    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["charge", "cancel charge"]


@pytest.mark.parametrize("key", [None, "the charge"])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_step_in_doubt_that_is_run_again_when_the_cancellation_comes_is_finished_and_undone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: str, key: str | None
) -> None:
    """It may have happened already: nobody may say that it has not, only because it was not run again."""
    cancelled, charge = lab.operation("cancel charge"), lab.operation("charge", "receipt", Crash())
    policy = OnAmbiguous.RERUN
    what = StepDescriptor.guarded(
        "charge", Intent.MONEY_MOVING, on_ambiguous=policy, key=key, compensate=lambda result: cancelled(result)
    )

    async def charge_async() -> str:
        return str(charge())

    async def body_async(context: Any) -> None:
        await context.step(what, charge_async)
        await context.step("more", charge_async)

    def body(context: Any) -> None:
        context.step(what, charge)
        context.step("more", lab.operation("more"))

    lab.crash(body if kind == "plain" else body_async)

    def cancel(point: str, *where: str) -> None:
        if point == "step.before_intent":
            monkeypatch.setattr(faults, "_armed", {})
            lab.operations.cancel("one", "not wanted")

    monkeypatch.setattr(faults, "_act", cancel)
    monkeypatch.setattr(faults, "_armed", {"any": []})
    lab.parks(body if kind == "plain" else body_async)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["charge", "charge", "cancel charge"]


def test_what_has_nothing_to_undo_is_cancelled_at_once(lab: Lab) -> None:
    lab.crash(lambda context: context.step("work", lab.operation("work", None, Crash())))
    lab.operations.cancel("one", "not wanted")
    assert lab.state() is State.CANCELLED


def test_what_is_being_undone_or_in_doubt_is_not_cancelled(lab: Lab) -> None:
    hotel = booking(lab, "hotel", Crash())

    def fails(context: Any) -> None:
        hotel(context)
        raise Stop("no")

    lab.crash(fails)
    with pytest.raises(WrongState, match="execution one is being undone already"):
        lab.operations.cancel("one", "not wanted")

    pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)

    def doubts(context: Any) -> None:
        hotel(context)
        context.step(pay, lab.operation("pay", None, Crash()))

    lab.crash(doubts, id="two")
    lab.parks(doubts, id="two")
    with pytest.raises(WrongState, match="first say what happened to the step in doubt"):
        lab.operations.cancel("two", "not wanted")


def test_a_cancelled_wait_is_left_at_once_and_undone(lab: Lab) -> None:
    hotel = booking(lab, "hotel")

    def body(context: Any) -> None:
        hotel(context)
        promise = context.promise("approval")
        lab.ledger.fire("waits")
        if lab.ledger.count("waits") == 1:
            raise Crash
        context.wait(promise)
        lab.ledger.fire("never")

    lab.crash(body)
    lab.operations.cancel("one", "not wanted")
    lab.lose_lease()
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel", "waits", "waits", "cancel hotel"]


@pytest.mark.parametrize("asked", ["before it waits", "while it waits"])
def test_recovery_wakes_what_is_cancelled_while_it_waits(lab: Lab, asked: str) -> None:
    """What is said to the database, without a worker: the next round finds the execution due."""
    ownership, recovery = lab.runtime.ownership, lab.runtime.recovery
    opened = ownership.open(OpenRequest("one", "job", "owner", 0, lambda: StoredPayload(0, b"{}")))
    assert isinstance(opened, Opened)
    lab.runtime.journal.append([Batch(opened.fence, 1, tuple(Saga().marks("hotel")))])
    if asked == "before it waits":
        lab.operations.cancel("one", "not wanted")
    ownership.suspend(Batch(opened.fence, 1, ()), "owner", delay_ms=3_600_000, retries=0)
    if asked == "while it waits":
        assert recovery.claim(10).due == []
        lab.operations.cancel("one", "not wanted")
    assert [due.id for due in recovery.claim(10).due] == ["one"]
    again = ownership.open(OpenRequest("one", "job", "other", 0, lambda: StoredPayload(0, b"{}"), pk=opened.fence.pk))
    assert isinstance(again, Opened)
    assert again.cancelling


def test_a_hard_time_limit_undoes_what_was_done(lab: Lab) -> None:
    """The worker's main process ends the execution; Celery knows of it already."""
    hotel = booking(lab, "hotel")

    def body(context: Any) -> None:
        hotel(context)
        context.step("slow", lab.operation("slow", None, Crash()))

    lab.crash(body)
    error = StoredPayload(*lab.runtime.codec.encode_error(TimeLimitExceeded(3), "an error"))
    assert lab.operations.fail("one", error, "too slow")
    lab.parks(body)
    assert lab.state() is State.FAILED
    assert lab.ledger.names() == ["hotel", "slow", "cancel hotel"]
    assert lab.operations.payload(lab.execution().pk, PayloadKind.OUTCOME) == error


def test_what_a_hard_time_limit_has_ended_is_undone_though_its_process_is_ended_meanwhile(lab: Lab) -> None:
    hotel, flight = booking(lab, "hotel"), booking(lab, "flight", Crash())

    def body(context: Any) -> None:
        hotel(context)
        flight(context)
        context.step("slow", lab.operation("slow", None, Crash()))

    lab.crash(body)
    error = StoredPayload(*lab.runtime.codec.encode_error(TimeLimitExceeded(3), "an error"))
    assert lab.operations.fail("one", error, "too slow")
    lab.crash(body)
    lab.parks(body)
    assert lab.state() is State.FAILED
    assert lab.ledger.names() == ["hotel", "flight", "slow", "cancel flight", "cancel flight", "cancel hotel"]


def test_what_was_undone_is_not_shared_by_a_rerun(lab: Lab) -> None:
    hotel = booking(lab, "hotel")
    lab.runtime.ownership.open(OpenRequest("one", "job", "owner", 0, lambda: StoredPayload(0, b"{}")))
    lab.lose_lease()

    def body(context: Any) -> None:
        hotel(context)
        raise Stop("no")

    with pytest.raises(Stop):
        lab.run(body)
    with pytest.raises(WrongState, match="what execution one did was undone, so none of its steps can be shared"):
        get("one", app=lab.app).rerun(from_step=1)


# -- bad input --------------------------------------------------------------------------------------------------


def test_compensations_that_could_not_be_called_are_refused_at_once(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="step 'pay': compensate= cannot be 'refund'"):
        StepDescriptor("pay", compensate="refund")  # type: ignore[arg-type]

    def refund(receipt: str) -> None: ...

    with pytest.raises(ConfigurationError) as refused:

        @step(compensate=refund)
        def pay(amount: int, currency: str = "EUR") -> str: ...

    assert str(refused.value) == (
        f"[{ConfigurationError.code}] step 'pay': compensate= is called with the step's result and its own arguments, "
        "which refund(receipt: 'str') -> 'None' does not take: too many positional arguments."
    )
    with pytest.raises(ConfigurationError, match=r"on_failure\(\) takes a function and its arguments, not None"):
        lab.run(lambda context: context.on_failure(None))


def test_a_body_that_changed_while_it_is_undone_is_parked(lab: Lab) -> None:
    hotel = booking(lab, "hotel", Crash())

    def before(context: Any) -> None:
        hotel(context)
        raise Stop("no")

    def after(context: Any) -> None:
        context.step("motel", lab.operation("motel"))

    lab.crash(before)
    assert "its body changed while it is being undone" in lab.parks(after)
    assert lab.state() is State.QUARANTINED
    assert lab.ledger.names() == ["hotel", "cancel hotel"]
