"""A body that sleeps holds nothing, and goes on when its time has come, by the database's clock."""

from __future__ import annotations

import datetime as dt
import gc
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.app.trace import trace_task

from celery_durable import ConfigurationError, DurableContext, NestedStep, Retry, StepDescriptor
from celery_durable.store.records import State
from tests.support.delivery import Delivery, Left
from tests.support.lab import Crash, Lab, everywhere

DAY = 86_400


@everywhere
def test_a_sleep_leaves_the_worker_and_ends_when_its_time_has_come(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> str:
        ctx.step("before", lab.operation("before"))
        ctx.sleep(dt.timedelta(days=1))
        ctx.step("after", lab.operation("after"))
        return "rested"

    deliver.suspends(body)
    assert lab.entries() == ["0 RESULT before", "1 TIMER sleep"]
    row = lab.execution()
    assert (row.state, row.owner is not None, row.lease_until) == (State.SUSPENDED, True, 0)
    claims = deliver.claim()
    assert claims.due == []
    assert claims.next_ms is not None
    assert DAY - 60 < claims.next_ms / 1000 <= DAY
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "rested"
    assert (lab.ledger.count("before"), lab.ledger.count("after")) == (1, 1)
    assert lab.entries() == ["0 RESULT before", "1 TIMER sleep", "1 RESULT sleep", "2 RESULT after"]
    assert lab.execution().steps == 2


@everywhere
def test_one_that_wakes_too_early_sleeps_on_to_the_same_time(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.sleep(DAY)

    deliver.suspends(body)
    deliver.elapse(DAY - 600)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 0 < claims.next_ms <= 600_000
    deliver.elapse(600)
    deliver.resumes(body)
    assert lab.entries() == ["0 TIMER sleep", "0 RESULT sleep"]


def test_a_stray_message_does_not_wake_a_sleeper(lab: Lab, deliver: Delivery) -> None:
    """The copy of a message that a broker has delivered twice."""
    bodies = []

    def body(ctx: DurableContext) -> None:
        bodies.append(1)
        ctx.sleep(DAY)

    deliver.suspends(body)
    before = lab.execution()
    with pytest.raises(Left, match="suspended"):
        deliver(body)
    assert bodies == [1]
    assert lab.execution() == before
    deliver.elapse(DAY)
    deliver.resumes(body)
    assert bodies == [1, 1]


def test_a_sleep_that_is_over_takes_its_place_and_no_time(lab: Lab, deliver: Delivery) -> None:
    now = dt.datetime.now(dt.timezone.utc)

    def body(ctx: DurableContext) -> None:
        ctx.sleep(0)
        ctx.sleep(0.01)
        ctx.sleep_until(now - dt.timedelta(days=9))
        ctx.sleep_until(now.astimezone(dt.timezone(dt.timedelta(hours=5))))
        ctx.sleep(dt.timedelta())
        ctx.step("a", len, "")

    deliver(body)
    assert lab.entries() == [f"{n} {kind} sleep" for n in range(5) for kind in ("TIMER", "RESULT")] + ["5 RESULT a"]


@everywhere
def test_a_moment_is_one_of_the_databases_clock(lab: Lab, deliver: Delivery) -> None:
    when = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=3)

    def body(ctx: DurableContext) -> str:
        ctx.sleep_until(when)
        return "up"

    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 3 * 3600 - 60 < claims.next_ms / 1000 <= 3 * 3600
    # Its time stands in the journal as it was given: nothing but that clock can bring it nearer.
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_machines_clock_that_is_wrong_by_an_hour_changes_nothing(
    lab: Lab, deliver: Delivery, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)

    def body(ctx: DurableContext) -> str:
        ctx.sleep(1800)
        ctx.sleep_until(dt.datetime.fromtimestamp(real() - 1, dt.timezone.utc))
        return "up"

    deliver.suspends(body)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 1700 < claims.next_ms / 1000 <= 1800
    deliver.elapse(1790)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    deliver.elapse(10)
    assert deliver.resumes(body) == "up"


def test_the_time_that_was_armed_stands_whatever_the_body_says_later(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext, seconds: float) -> str:
        ctx.sleep(seconds)
        return "up"

    deliver.suspends(body, DAY)
    deliver.elapse(60)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body, 1)
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    assert deliver(body, 10 * DAY) == "up"
    assert lab.execution().generation == 1


def test_a_finished_sleep_is_not_waited_for_again(lab: Lab, deliver: Delivery) -> None:
    """Whatever the clock says later: what was decided is journaled."""

    def body(ctx: DurableContext) -> None:
        ctx.sleep(DAY)
        ctx.step("keep", lambda: None)
        ctx.sleep(DAY)

    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    deliver.elapse(-100 * DAY)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    assert lab.entries() == ["0 TIMER sleep", "0 RESULT sleep", "1 RESULT keep", "2 TIMER sleep"]


def test_a_body_that_swallows_the_suspension_gets_it_again(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> str:
        try:
            ctx.sleep(DAY)
        except BaseException:
            lab.ledger.fire("swallowed")
        try:
            ctx.step("a", lab.operation("a"))
        except BaseException:
            lab.ledger.fire("again")
        raise ValueError("what it raises does not count either")

    deliver.suspends(body)
    assert lab.ledger.names() == ["swallowed", "again"]
    assert lab.entries() == ["0 TIMER sleep"]


def test_what_the_body_has_handled_before_it_sleeps_is_journaled(lab: Lab, deliver: Delivery) -> None:
    op = lab.operation("op", None, ValueError("once"))

    def body(ctx: DurableContext) -> str:
        try:
            ctx.step("op", op)
        except ValueError as error:
            ctx.sleep(DAY)
            return str(error)
        return "no error"

    deliver.suspends(body)
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "once"
    assert lab.ledger.count("op") == 1


def test_a_sleep_survives_a_crash_right_after_it(lab: Lab, deliver: Delivery) -> None:
    die = lab.operation("die", None, Crash())

    def body(ctx: DurableContext) -> str:
        ctx.sleep(DAY)
        ctx.step("die", die)
        return "alive"

    deliver.suspends(body)
    deliver.elapse(DAY)
    with pytest.raises(Left):
        deliver.resumes(body)
    assert lab.execution().attempts == 1
    assert deliver.resumes(body) == "alive"


def test_one_that_was_cancelled_in_its_sleep_does_not_wake(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.sleep(DAY)
        ctx.step("after", lab.operation("after"))

    deliver.suspends(body)
    lab.operations.cancel("one", "not needed any more")
    deliver.elapse(DAY)
    assert deliver.due() == []
    with pytest.raises(Left, match="cancelled"):
        deliver(body)
    assert lab.ledger.count("after") == 0


def test_loggers_and_facts_know_that_a_sleep_was_replayed(lab: Lab, deliver: Delivery) -> None:
    seen: list[bool] = []

    def body(ctx: DurableContext) -> None:
        seen.append(ctx.replaying)
        ctx.sleep(DAY)
        seen.append(ctx.replaying)
        ctx.step("a", len, "")

    deliver.suspends(body)
    deliver.elapse(DAY)
    deliver.resumes(body)
    assert seen == [False, True, False]


# -- other bodies than the journal's ------------------------------------------------------------------------------


def _names(ctx: DurableContext, what: str) -> Any:
    return {
        "sleep": lambda: ctx.sleep(DAY),
        "timer": lambda: (ctx.timer(days=1), ctx.sleep(DAY)),
        "promise": lambda: ctx.wait(ctx.promise("approval")),
        "other promise": lambda: ctx.wait(ctx.promise("decision")),
        "step": lambda: (ctx.step("approval", len, ""), ctx.sleep(DAY)),
        "scope": lambda: _scope(ctx),
    }[what]()


def _scope(ctx: DurableContext) -> None:
    with ctx.parallel():
        pass
    ctx.sleep(DAY)


@pytest.mark.parametrize(
    ("was", "now", "code", "what", "recorded", "requested"),
    [
        ("sleep", "step", "CD103", "the kind of operation changed", "sleep (timer)", "approval (idempotent)"),
        ("step", "sleep", "CD103", "the kind of operation changed", "approval (idempotent)", "sleep (timer)"),
        ("sleep", "scope", "CD103", "the kind of operation changed", "sleep (timer)", "parallel (scope)"),
        ("scope", "sleep", "CD103", "the kind of operation changed", "parallel (scope)", "sleep (timer)"),
        ("sleep", "promise", "CD103", "the kind of operation changed", "sleep (timer)", "approval (promise)"),
        ("sleep", "timer", "CD101", "another timer was recorded", "sleep (timer)", "timer (timer)"),
        (
            "promise",
            "other promise",
            "CD101",
            "another promise was recorded",
            "approval (promise)",
            "decision (promise)",
        ),
    ],
)
def test_a_wait_where_the_journal_has_something_else_is_a_divergence(
    make_lab: Any, was: str, now: str, code: str, what: str, recorded: str, requested: str
) -> None:
    lab = make_lab(durable_on_divergence="park")
    deliver = Delivery(lab)
    deliver.suspends(lambda ctx: _names(ctx, was))
    lab.wake()
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="quarantined"):
        deliver(lambda ctx: _names(ctx, now))
    lines = [line.split(", arguments")[0] for line in lab.reason().splitlines()[:3]]
    assert lines == [
        f"[{code}] execution one diverged from its journal at position 0: {what}.",
        f"  recorded   {recorded}",
        f"  requested  {requested}",
    ]


def test_a_sleep_that_is_no_longer_reached_is_a_divergence(make_lab: Any) -> None:
    lab = make_lab(durable_on_divergence="park")
    deliver = Delivery(lab)
    deliver.suspends(lambda ctx: ctx.sleep(DAY))
    lab.wake()
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="quarantined"):
        deliver(lambda ctx: None)
    assert lab.reason().startswith("[CD106] execution one diverged from its journal at position 0: a recorded step was")


def test_a_sleep_beyond_the_end_of_a_finished_branch_is_a_divergence(make_lab: Any) -> None:
    lab = make_lab(durable_on_divergence="park")
    deliver = Delivery(lab)

    def body(ctx: DurableContext, longer: bool) -> None:
        def branch() -> None:
            ctx.step("a", len, "")
            if longer:
                ctx.sleep(1)

        with ctx.parallel() as branches:
            branches.submit(branch)
        ctx.sleep(DAY)

    deliver.suspends(body, False)
    lab.wake()
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="quarantined"):
        deliver(body, True)
    assert lab.reason().startswith(
        "[CD105] execution one diverged from its journal at position 0.0/1: a wait where the finished branch had none."
    )


# -- bad input ----------------------------------------------------------------------------------------------------

NAIVE = dt.datetime(2030, 1, 1)  # noqa: DTZ001
SECONDS = "takes seconds or a timedelta"
CENTURY = "of at most a hundred years (36525 days), not"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ctx: ctx.sleep(-1), "sleep() cannot be negative, as -1 is. For a moment that may have passed, use"),
        (
            lambda ctx: ctx.sleep(dt.timedelta(days=-1)),
            "sleep() cannot be negative, as datetime.timedelta(days=-1) is.",
        ),
        (lambda ctx: ctx.sleep(float("nan")), f"sleep() {SECONDS} {CENTURY} nan."),
        (lambda ctx: ctx.sleep(float("inf")), f"sleep() {SECONDS} {CENTURY} inf."),
        (lambda ctx: ctx.sleep(10**400), f"sleep() {SECONDS} {CENTURY} 1000"),
        (
            lambda ctx: ctx.sleep(dt.timedelta(days=99_999)),
            f"sleep() {SECONDS} {CENTURY} datetime.timedelta(days=99999)",
        ),
        (lambda ctx: ctx.sleep("5"), f"sleep() {SECONDS}, not '5'."),
        (lambda ctx: ctx.sleep(True), f"sleep() {SECONDS}, not True."),
        (lambda ctx: ctx.sleep(None), f"sleep() {SECONDS}, not None."),
        (lambda ctx: ctx.sleep_until(5), "sleep_until() takes a datetime, not 5."),
        (
            lambda ctx: ctx.sleep_until(dt.date(2030, 1, 1)),
            "sleep_until() takes a datetime, not datetime.date(2030, 1, 1).",
        ),
        (
            lambda ctx: ctx.sleep_until(NAIVE),
            "sleep_until() takes an aware datetime, and datetime.datetime(2030, 1, 1, 0, 0) has no time zone",
        ),
        (
            lambda ctx: ctx.sleep_until(dt.datetime(9999, 1, 1, tzinfo=dt.timezone.utc)),
            "sleep_until() takes a datetime within the next hundred years, not",
        ),
        (
            lambda ctx: ctx.timer(5, days=1),
            "timer() takes exactly one of: a duration, weeks= to seconds= (which are added up), or until=.",
        ),
        (lambda ctx: ctx.timer(days=-1), "timer() cannot be negative"),
        (lambda ctx: ctx.timer(days="2"), "timer(): unsupported type for timedelta days component: str;"),
        (lambda ctx: ctx.timer(days=10**12), "timer(): "),
        (lambda ctx: ctx.timer(until=NAIVE), "timer(until=) takes an aware datetime"),
        (lambda ctx: ctx.promise(""), "a promise's name is a text of 1 to 200 characters, not ''."),
        (lambda ctx: ctx.promise("x" * 201), "a promise's name is a text of 1 to 200 characters, not 'xxx"),
        (lambda ctx: ctx.promise(5), "a promise's name is a text of 1 to 200 characters, not 5."),
        (lambda ctx: ctx.promise("a\0"), "a promise's name is a text of 1 to 200 characters, not 'a\\x00'."),
        (lambda ctx: ctx.promise("a", timeout=0), "promise(timeout=) must be longer than 0, and 0 is not."),
        (lambda ctx: ctx.promise("a", heartbeat=-1), "promise(heartbeat=) cannot be negative"),
        (lambda ctx: ctx.wait("approval"), "wait() takes a promise or a timer, made by promise() or timer() in this"),
        (lambda ctx: ctx.select(), "select() needs something to wait for"),
        (lambda ctx: ctx.select(late=5), "select(late=) takes a promise or a timer"),
    ],
)
def test_bad_input_is_refused_with_the_cure_and_takes_no_position(lab: Lab, call: Any, message: str) -> None:
    def body(ctx: DurableContext) -> str:
        with pytest.raises(ConfigurationError) as caught:
            call(ctx)
        ctx.step("a", len, "")
        return caught.value.message

    assert lab.run(body).startswith(message)
    assert lab.entries() == ["0 RESULT a"]


def test_a_wait_inside_a_step_is_refused(lab: Lab) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.step("outer", ctx.sleep, 1)

    with pytest.raises(NestedStep, match=r"'sleep' was used inside the operation of step 'outer'"):
        lab.run(body)


def test_a_retry_policy_does_not_see_waits(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.step(StepDescriptor.idempotent("a", retry=Retry(5, backoff=0)), len, "")
        ctx.sleep(DAY)

    deliver.suspends(body)
    assert lab.state() is State.SUSPENDED


def test_what_celery_makes_of_a_body_that_waits_is_small_and_gone_at_once(lab: Lab) -> None:
    """It copies frames, each with a list as long as its code, and holds them in a cycle."""
    lab._body = lambda ctx: ctx.sleep(DAY)

    def deliver(execution: str) -> Any:
        request = {"id": execution, "retries": 0, "is_eager": False, "delivery_info": {"routing_key": "celery"}}
        return trace_task(lab.job, execution, (), {}, request, app=lab.app)

    def copies() -> int:
        return sum(type(one) is ExceptionInfo for one in gc.get_objects())

    made = deliver("one").retval
    assert isinstance(made, ExceptionInfo)
    frames, trace = 0, made.tb
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames == 3  # Celery's two, and the task's
    del made
    gc.collect()
    before = copies()
    gc.disable()
    try:
        for number in range(5):
            deliver(f"more-{number}")
        assert copies() == before
    finally:
        gc.enable()
    assert {row.state for row in lab.operations.find()} == {State.SUSPENDED}
