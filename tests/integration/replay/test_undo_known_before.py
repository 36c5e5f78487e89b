"""What can be undone is known to the journal before it happens, also where it may be repeated: no crash forgets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import (
    DurableContext,
    Effect,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    ResultLost,
    Retry,
    StepDescriptor,
    StepOutcome,
    WrongState,
    current_step,
    get,
    guarded,
    step,
)
from celery_durable.store.records import EntryKind, PayloadKind, State, StoredPayload
from tests.integration.client.test_rerun import Works
from tests.integration.steps.test_unstarted import Outage
from tests.support.lab import Crash, Lab, everywhere

pytestmark = everywhere


class Stop(Exception):
    """What the bodies fail with."""


class Hotel:
    """A step that can be undone. Its operation raises ``errors`` in turn, when the effect has happened."""

    def __init__(
        self,
        lab: Lab,
        *errors: BaseException | None,
        name: str = "hotel",
        effect: Effect = Effect.AT_LEAST_ONCE,
        **options: Any,
    ) -> None:
        self.lab, self.name, self.left = lab, name, list(errors)
        self.descriptor = StepDescriptor(name, effect, compensate=self.undo, **options)
        #: Idempotency keys that its operation has seen.
        self.keys: list[bytes] = []
        #: What the operation returns.
        self.value: Any = f"a {name}"

    def operate(self) -> Any:
        self.keys.append(current_step().idempotency_key)
        self.lab.ledger.fire(self.name)
        error = self.left.pop(0) if self.left else None
        if error is not None:
            raise error
        return self.value

    async def operate_async(self) -> Any:
        await asyncio.sleep(0)
        return self.operate()

    def undo(self, result: Any) -> None:
        self.lab.ledger.fire(f"undo {self.name}", result=result)

    def __call__(self, context: Any) -> Any:
        return context.step(self.descriptor, self.operate)


# -- the ways in which a body asks for it -----------------------------------------------------------------------------


def plainly(hotel: Hotel) -> Callable[[Any], Any]:
    return hotel


def as_function(hotel: Hotel) -> Callable[[Any], Any]:
    @step(name="hotel", effect=hotel.descriptor.effect, compensate=hotel.undo)
    def book() -> Any:
        return hotel.operate()

    return lambda context: book()


def recorded(hotel: Hotel) -> Callable[[Any], Any]:
    return lambda context: context.step_recorded(hotel.descriptor, hotel.operate).value


def in_a_branch(hotel: Hotel) -> Callable[[Any], Any]:
    def body(context: Any) -> Any:
        with context.parallel() as branches:
            branches.submit(lambda: None)
            one = branches.submit(hotel, context)
        return one.result()

    return body


def as_coroutine(hotel: Hotel) -> Callable[[Any], Any]:
    async def body(context: Any) -> Any:
        return await context.step(hotel.descriptor, hotel.operate_async)

    return body


def within_a_time_out(hotel: Hotel) -> Callable[[Any], Any]:
    async def body(context: Any) -> Any:
        one = await asyncio.wait_for(context.step_recorded(hotel.descriptor, hotel.operate_async), 60)
        return one.value

    return body


def in_a_coroutine_branch(hotel: Hotel) -> Callable[[Any], Any]:
    async def body(context: Any) -> Any:
        async with context.parallel() as branches:
            one = branches.step(hotel.descriptor, hotel.operate_async)
        return await one

    return body


def gathered(hotel: Hotel) -> Callable[[Any], Any]:
    async def nothing() -> None:
        """An operation."""

    async def body(context: Any) -> Any:
        found = await asyncio.gather(context.step(hotel.descriptor, hotel.operate_async), context.step("look", nothing))
        return found[0]

    return body


FORMS = [plainly, as_function, recorded, in_a_branch, as_coroutine, within_a_time_out, in_a_coroutine_branch, gathered]
EFFECTS = [Effect.IDEMPOTENT, Effect.AT_LEAST_ONCE]

forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
effects = pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.value)


def cancel(lab: Lab) -> None:
    lab.operations.cancel("one", "not wanted")
    lab.lose_lease()


# -- a replay ---------------------------------------------------------------------------------------------------------


@forms
@effects
def test_what_died_before_its_result_was_committed_is_run_again_and_nothing_is_in_doubt(
    lab: Lab, form: Any, effect: Effect
) -> None:
    hotel = Hotel(lab, Crash(), effect=effect)
    body = form(hotel)
    lab.crash(body)
    [begun] = [entry for entry in lab.entries() if entry.endswith(" hotel") and "SAGA" not in entry]
    assert " INTENT " in begun
    assert lab.run(body) == "a hotel"
    assert lab.state() is State.COMPLETED
    assert lab.ledger.names() == ["hotel", "hotel"]
    assert hotel.keys[0] == hotel.keys[1]
    assert lab.audits() == []
    # It is announced once.
    place = begun.partition(" ")[0]
    assert [e for e in lab.entries() if e.startswith(f"{place} ")] == [f"{place} INTENT hotel", f"{place} RESULT hotel"]


@forms
@effects
def test_what_is_cancelled_meanwhile_is_run_again_and_undone_once(lab: Lab, form: Any, effect: Effect) -> None:
    body = form(Hotel(lab, Crash(), effect=effect))
    lab.crash(body)
    cancel(lab)
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel", "hotel", "undo hotel"]
    assert lab.ledger.entries("undo hotel")[0]["result"] == "a hotel"
    assert lab.audits() == []


def test_so_is_what_a_hard_time_limit_has_ended(lab: Lab) -> None:
    hotel = Hotel(lab, Crash())
    lab.crash(hotel)
    error = StoredPayload(*lab.runtime.codec.encode_error(TimeoutError("too slow"), "an error"))
    assert lab.operations.fail("one", error, "too slow")
    lab.parks(hotel)
    assert lab.state() is State.FAILED
    assert lab.ledger.names() == ["hotel", "hotel", "undo hotel"]
    assert lab.operations.payload(lab.execution().pk, PayloadKind.OUTCOME) == error


def test_what_takes_too_long_each_time_is_not_begun_for_ever(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_attempts=2)
    hotel = Hotel(lab, *[Crash()] * 9)
    error = StoredPayload(*lab.runtime.codec.encode_error(TimeoutError("too slow"), "an error"))
    for _ in range(4):
        lab.crash(hotel)
        assert lab.operations.fail("one", error, "too slow")
    lab.parks(hotel)
    assert lab.state() is State.QUARANTINED
    assert lab.ledger.names() == ["hotel"] * 4


def test_a_crash_while_it_is_run_again_changes_nothing(lab: Lab) -> None:
    hotel = Hotel(lab, Crash(), Crash(), Crash())
    lab.crash(hotel)
    cancel(lab)
    lab.crash(hotel)
    lab.crash(hotel)
    lab.parks(hotel)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel"] * 4 + ["undo hotel"]


def test_what_comes_after_it_is_not_begun_by_a_cancelled_body(lab: Lab) -> None:
    first, second = Hotel(lab, Crash(), name="first"), Hotel(lab, name="second")

    def body(context: Any) -> None:
        first(context)
        second(context)

    lab.crash(body)
    cancel(lab)
    lab.parks(body)
    assert lab.ledger.names() == ["first", "first", "undo first"]


# -- where that does not tell ------------------------------------------------------------------------------------------


def shy(hotel: Hotel) -> Callable[[Any], Any]:
    """A body that handles every error."""

    def body(context: Any) -> None:
        try:
            hotel(context)
        except OSError:
            context.step("motel", lambda: None)

    return body


RERUN = {"effect": Effect.EXACTLY_ONCE_GUARDED, "guard": guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN)}


@pytest.mark.parametrize("options", [{"effect": Effect.IDEMPOTENT}, RERUN], ids=["idempotent", "guarded"])
@pytest.mark.parametrize("form", [plainly, shy, in_a_branch, as_coroutine], ids=lambda form: form.__name__)
def test_an_error_of_what_is_run_again_to_be_undone_parks_it_until_it_can_be_told(
    lab: Lab, form: Any, options: dict[str, Any]
) -> None:
    body = form(Hotel(lab, Crash(), OSError("no line"), OSError("no line"), **options))
    lab.crash(body)
    cancel(lab)
    reason = lab.parks(body)
    assert lab.state() is State.AMBIGUOUS
    place = "0.1/0" if form is in_a_branch else "0"
    assert reason == (
        f"step 'hotel' (position {place}) of execution one was under way when its process died, was run again to find "
        "out whether there is something to undo, and raised OSError. To run it once more: celery durable resume one. "
        "Or look at the remote side (idempotency key KEY), then: celery durable resolve one "
        f"{place} --value JSON (it happened: undo it) | --fail (it did not)"
    )
    assert [doubt.place for doubt in lab.operations.doubts(lab.execution())] == [place]
    # The line is still down; then it is not.
    for state in (State.AMBIGUOUS, State.CANCELLED):
        lab.operations.resume("one")
        lab.parks(body)
        assert lab.state() is state
    assert lab.ledger.names() == ["hotel"] * 4 + ["undo hotel"]


@pytest.mark.parametrize(
    ("kind", "value", "undone"),
    [
        (EntryKind.RESULT, "room 7", ["room 7"]),
        (EntryKind.ERROR, Stop("it was full"), []),
        (EntryKind.RUN_AGAIN, None, []),
    ],
    ids=lambda kind: getattr(kind, "name", ""),
)
def test_an_operator_can_say_what_became_of_it(lab: Lab, kind: EntryKind, value: Any, undone: list[str]) -> None:
    first, hotel = Hotel(lab, name="first"), Hotel(lab, Crash(), OSError("no line"))

    def body(context: Any) -> None:
        first(context)
        hotel(context)

    lab.crash(body)
    cancel(lab)
    lab.parks(body)
    assert lab.ledger.names() == ["first", "hotel", "hotel"]
    assert lab.settle("1", kind, value) == []
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert [entry["result"] for entry in lab.ledger.entries("undo hotel")] == undone
    assert lab.ledger.count("undo first") == 1


def test_an_error_in_a_body_that_goes_on_is_an_ordinary_one(lab: Lab) -> None:
    """As where nothing has died: its effect allows to run it again, and that is what came of it."""
    body = shy(Hotel(lab, Crash(), OSError("no line")))
    lab.crash(body)
    lab.run(body)
    assert lab.state() is State.COMPLETED


# -- tries ------------------------------------------------------------------------------------------------------------


def test_each_try_is_announced_and_a_crash_in_any_of_them_is_undone(lab: Lab) -> None:
    hotel = Hotel(lab, OSError("no line"), Crash(), retry=Retry(3, backoff=0))
    lab.crash(hotel)
    assert [e for e in lab.entries() if e.startswith("0 ")] == ["0 INTENT hotel", "0 ATTEMPT hotel", "0 INTENT hotel"]
    assert [row.attempt for row in lab.rows() if row.scope == ""] == [1, 1, 2]
    cancel(lab)
    lab.parks(hotel)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel"] * 3 + ["undo hotel"]


def test_what_has_failed_is_known_to_have_failed(lab: Lab) -> None:
    """Whoever cancels it then has nothing found out, and nothing undone."""
    hotel = Hotel(lab, OSError("full"))

    def body(context: Any) -> None:
        try:
            hotel(context)
        except OSError:
            raise Crash from None

    lab.crash(body)
    cancel(lab)
    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["hotel"]


def test_a_retry_of_the_task_tries_it_again(lab: Lab) -> None:
    hotel = Hotel(lab, OSError("full"))
    task = lab.task(
        "patient", lambda task: hotel(task.durable), autoretry_for=(OSError,), max_retries=3, default_retry_delay=0
    )
    assert lab.apply(task) == "a hotel"
    kinds = [entry for entry in lab.entries() if entry.startswith("0 ")]
    assert kinds == ["0 INTENT hotel", "0 ATTEMPT hotel", "0 INTENT hotel", "0 RESULT hotel"]


def test_a_failure_that_the_body_does_not_handle_undoes_nothing_of_it(lab: Lab) -> None:
    other, hotel = Hotel(lab, name="other"), Hotel(lab, Stop("full"))

    def body(context: Any) -> None:
        other(context)
        hotel(context)

    with pytest.raises(Stop, match="full"):
        lab.run(body)
    assert lab.ledger.names() == ["other", "hotel", "undo other"]
    kinds = [entry for entry in lab.entries() if entry.startswith("1 ")]
    assert kinds == ["1 INTENT hotel", "1 ATTEMPT hotel", "1 ERROR hotel"]


def test_a_result_that_cannot_be_stored_is_lost_and_what_was_done_is_undone(lab: Lab) -> None:
    hotel = Hotel(lab)
    hotel.value = object()
    with pytest.raises(ResultLost, match="step 'hotel' \\(position 0\\) of execution one was done"):
        lab.run(hotel)
    assert lab.ledger.names() == ["hotel", "undo hotel"]
    assert lab.ledger.entries("undo hotel")[0]["result"] is None
    assert "0 LOST hotel" in lab.entries()


# -- a body that does not come to it ----------------------------------------------------------------------------------


def test_a_body_that_fails_before_it_comes_to_it_is_parked(lab: Lab) -> None:
    hotel, trouble = Hotel(lab, Crash()), [None, Stop("no template"), Stop("sold out")]

    def body(context: Any) -> None:
        error = trouble.pop(0)
        if error is not None and trouble:
            raise error
        hotel(context)
        raise error or AssertionError

    lab.crash(body)
    reason = lab.parks(body)
    assert lab.state() is State.QUARANTINED
    assert reason.startswith(
        "its body ended before it reached all that its journal holds (code CD106): step 'hotel' (position 0, "
        "generation 1) was begun, and can be undone. Without them nobody knows how to undo that"
    )
    lab.operations.resume("one")
    with pytest.raises(Stop, match="sold out"):
        lab.run(body)
    assert lab.ledger.names() == ["hotel", "hotel", "undo hotel"]


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "failed"])
def test_a_body_that_changed_and_does_not_ask_for_it_is_parked(lab: Lab, cancelled: bool) -> None:
    lab.crash(Hotel(lab, Crash()))

    def after(context: Any) -> None:
        context.step("check", lab.operation("check", None, Crash() if cancelled else None))
        raise Stop("sold out")

    if cancelled:
        lab.crash(after)
        cancel(lab)
    assert lab.parks(after).startswith(
        "its body changed, and no longer asks for steps that it once ran: step 'hotel' (position 0, generation 1) was "
        "begun, and can be undone."
    )
    assert lab.state() is State.QUARANTINED
    assert lab.execution().generation == 2


def test_a_changed_body_that_asks_for_it_does_it_again_and_undoes_it_once(lab: Lab) -> None:
    hotel = Hotel(lab, Crash())
    lab.crash(hotel)

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        hotel(context)
        raise Stop("sold out")

    with pytest.raises(Stop, match="sold out"):
        lab.run(after)
    assert lab.ledger.names() == ["hotel", "check", "hotel", "undo hotel"]


def test_a_changed_body_that_asks_for_one_of_two_is_parked(lab: Lab) -> None:
    """Steps that were done and steps that were begun are counted together."""
    hotel = Hotel(lab, None, Crash())

    def before(context: Any) -> None:
        hotel(context)
        hotel(context)

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        hotel(context)
        raise Stop("sold out")

    lab.crash(before)
    reason = lab.parks(after)
    assert "step 'hotel' (position 1, generation 1) was begun, and can be undone." in reason
    assert "position 0" not in reason


def test_a_changed_body_that_completes_without_it_says_so(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.crash(Hotel(lab, Crash()))
    assert lab.run(lambda context: context.step("check", lab.operation("check", "done"))) == "done"
    assert lab.state() is State.COMPLETED
    [told] = [
        record.message for record in caplog.records if "no longer asks for steps that it ran before" in record.message
    ]
    assert "step 'hotel' (position 0, generation 1) was begun, and can be undone. They stay done" in told


def test_a_body_that_returns_without_it_is_parked(lab: Lab) -> None:
    lab.crash(Hotel(lab, Crash()))
    reason = lab.parks(lambda context: "done")
    assert (
        "its body no longer asks for steps that it once ran: step 'hotel' (position 0, generation 1) was begun, and "
        "can be undone." in reason
    )
    assert lab.execution().generation == 1


def test_what_has_an_end_is_not_taken_for_begun_by_the_next_generation(lab: Lab) -> None:
    """Its intent stays in the journal; a step that failed is nothing to undo."""
    hotel, motel = Hotel(lab, Stop("full")), Hotel(lab, name="motel")

    def before(context: Any) -> None:
        with pytest.raises(Stop):
            hotel(context)
        motel(context)
        context.step("more", lab.operation("more", None, Crash()))

    def after(context: Any) -> None:
        context.step("check", lab.operation("check"))
        motel(context)
        raise Stop("sold out")

    lab.crash(before)
    with pytest.raises(Stop, match="sold out"):
        lab.run(after)
    assert lab.ledger.names() == ["hotel", "motel", "more", "check", "motel", "undo motel"]


# -- the intent itself ------------------------------------------------------------------------------------------------


def test_the_intent_tells_of_a_cancellation_and_the_operation_does_not_start(lab: Lab) -> None:
    first, second = Hotel(lab, name="first"), Hotel(lab, name="second")

    def body(context: Any) -> None:
        first(context)
        lab.operations.cancel("one", "not wanted")
        second(context)

    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["first", "undo first"]
    assert [e for e in lab.entries() if e.startswith("1 ")] == ["1 INTENT second", "1 RUN_AGAIN second"]


def test_an_owner_that_was_taken_over_starts_nothing_that_can_be_undone(lab: Lab) -> None:
    hotel = Hotel(lab)

    def body(context: DurableContext) -> None:
        context.step("first", lab.operation("first"))
        context._run.flush()
        lab.operations.cancel("one", "not wanted")  # at once: there is nothing to undo
        hotel(context)

    lab.parks(body)
    assert lab.state() is State.CANCELLED
    assert lab.ledger.names() == ["first"]


@pytest.mark.parametrize("commits", [True, False], ids=["it was committed", "it was not"])
def test_an_operation_whose_intent_was_not_acknowledged_runs_at_the_next_attempt(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    hotel = Hotel(lab)
    Outage(lab, monkeypatch, commits, JournalUnavailable("the database is away."))

    def body(context: Any) -> Any:
        return context.step("first", lambda: 1), hotel(context)

    with pytest.raises(JournalUnavailable):
        lab.run(body)
    assert lab.ledger.names() == []
    lab.runtime.keeper._retire()
    assert lab.run(body) == (1, "a hotel")
    assert lab.ledger.names() == ["hotel"]


def test_a_run_that_goes_on_without_its_journal_runs_it(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(durable_on_unavailable="degrade")
    hotel = Hotel(lab)
    Outage(lab, monkeypatch, False, JournalUnavailable("the database is away."))
    assert lab.run(hotel) == "a hotel"
    assert lab.ledger.names() == ["hotel"]


# -- what else reads the journal --------------------------------------------------------------------------------------


def test_an_operator_sees_that_it_was_begun_and_has_nothing_to_decide(lab: Lab) -> None:
    lab.crash(Hotel(lab, Crash()))
    [shown] = get("one", app=lab.app).steps()
    assert (shown.outcome, shown.doubt) == (StepOutcome.BEGUN, None)
    assert lab.operations.doubts(lab.execution()) == []


def test_what_was_begun_cannot_be_resolved(lab: Lab) -> None:
    pay = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)

    async def body(context: Any) -> None:
        begun = asyncio.Event()

        async def book() -> None:
            begun.set()
            await asyncio.sleep(3600)

        async def charge() -> None:
            await begun.wait()
            raise TimeoutError("no answer")

        hotel = StepDescriptor("hotel", compensate=lambda result: None)
        booking = asyncio.ensure_future(context.step(hotel, book))
        try:
            await context.step(pay, charge)
        finally:
            booking.cancel()

    lab.parks(body)
    assert lab.state() is State.AMBIGUOUS
    with pytest.raises(WrongState) as refused:
        lab.settle("0", EntryKind.RESULT, None)
    assert str(refused.value).endswith(
        "the step at position 0 of execution one is not in doubt: it had started, and is run again when the execution "
        "continues, as its effect allows. In doubt: 1 (pay). See: celery durable show one"
    )


def test_a_rerun_shares_nothing_that_was_only_begun(make_lab: Callable[..., Works]) -> None:
    works = make_lab(Works)
    first, hotel = Hotel(works, name="first"), Hotel(works, Crash())

    def body(context: Any) -> Any:
        first(context)
        hotel(context)
        return context.step("last", works.operation("last", "done"))

    source = works.call(body)
    works.operations.cancel("one", "not wanted", undo=False)
    with pytest.raises(
        WrongState, match="step 'hotel' \\(position 1\\) of execution one has not ended \\(it is begun\\)"
    ):
        source.rerun(2)
    again = source.rerun(1)
    assert works.run(body, id=again.id) == "done"
    assert works.ledger.names() == ["first", "hotel", "hotel", "last"]


def test_a_rerun_undoes_what_it_has_begun_itself(make_lab: Callable[..., Works]) -> None:
    works = make_lab(Works)
    first, hotel = Hotel(works, name="first"), Hotel(works, None, Crash())

    def body(context: Any) -> None:
        first(context)
        hotel(context)

    again = works.call(body).rerun(1)
    works.crash(body, id=again.id)
    works.operations.cancel(again.id, "not wanted")
    works.lose_lease(again.id)
    works.parks(body, id=again.id)
    assert works.state(again.id) is State.CANCELLED
    assert works.ledger.names() == ["first", "hotel", "hotel", "hotel", "undo hotel"]


def test_long_journals_are_folded_with_what_can_be_undone(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=50)
    hotel = Hotel(lab)

    def body(context: Any) -> None:
        for number in range(49):
            if number % 5:
                context.step("look", lambda n: n, number)
            else:
                hotel(context)
            context._run.flush()
        lab.ledger.fire("end")
        if lab.ledger.count("end") == 1:
            raise Crash
        raise Stop("sold out")

    lab.crash(body)
    assert any(EntryKind(row.kind) is EntryKind.CHECKPOINT for row in lab.rows())
    with pytest.raises(Stop):
        lab.run(body)
    assert lab.ledger.count("hotel") == lab.ledger.count("undo hotel") == 10
