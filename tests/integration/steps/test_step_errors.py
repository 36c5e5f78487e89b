"""What becomes of a step's exception: tried again, handled by the body and replayed, or escaped and run anew."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest

from celery_durable import DurableContext, ErrorPlaceholder, Retry, StepDescriptor, current_step
from celery_durable.codec.exceptions import TRACEBACK_ATTRIBUTE
from celery_durable.steps import drive as driver
from celery_durable.store.records import EntryKind, State
from tests.support.lab import Crash, Lab, everywhere


class Refused(Exception):
    """Has more to say than its text."""

    def __init__(self, code: int, hint: str = "") -> None:
        super().__init__(code)
        self.hint = hint


class Final(Refused):
    """Not worth another try."""


def trying(**options: Any) -> StepDescriptor:
    return StepDescriptor.idempotent("try", retry=Retry(**{"backoff": 0, **options}))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; they take no time."""
    found: list[float] = []
    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=found.append))
    return found


# -- retry= -----------------------------------------------------------------------------------------------------


def test_a_step_is_tried_as_often_as_its_policy_says(lab: Lab) -> None:
    op = lab.operation("try", "done", OSError("1"), OSError("2"))
    assert lab.run(lambda ctx: ctx.step(trying(max_attempts=3), op)) == "done"
    assert lab.ledger.count("try") == 3
    assert lab.entries() == ["0 ATTEMPT try", "0 ATTEMPT try", "0 RESULT try"]


def test_each_try_knows_its_number(lab: Lab) -> None:
    numbers: list[int] = []

    def op() -> None:
        numbers.append(current_step().attempt)
        if len(numbers) < 3:
            raise OSError

    assert lab.run(lambda ctx: ctx.step_recorded(trying(), op).attempt) == 3
    assert numbers == [1, 2, 3]


def test_the_last_exception_goes_to_the_body(lab: Lab) -> None:
    op = lab.operation("try", "done", OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="2"):
        lab.run(lambda ctx: ctx.step(trying(max_attempts=2), op))
    assert lab.ledger.count("try") == 2


def test_some_exceptions_are_not_worth_another_try(lab: Lab) -> None:
    op = lab.operation("try", "done", Refused(1), Final(2), Refused(3))
    with pytest.raises(Final):
        lab.run(lambda ctx: ctx.step(trying(max_attempts=9, on=Refused, give_up_on=Final), op))
    assert lab.ledger.count("try") == 2


def test_pauses_double_up_to_the_longest(lab: Lab, pauses: list[float]) -> None:
    op = lab.operation("try", "done", *[OSError() for _ in range(5)])
    lab.run(lambda ctx: ctx.step(trying(max_attempts=6, backoff=1, max_backoff=5, jitter=False), op))
    assert pauses == [1, 2, 4, 5, 5]


@everywhere
def test_a_crash_does_not_reset_the_count_of_tries(lab: Lab) -> None:
    op = lab.operation("try", "done", OSError("1"), OSError("2"), Crash(), OSError("4"), OSError("5"))
    body = lambda ctx: ctx.step(trying(max_attempts=3), op)  # noqa: E731
    lab.crash(body)
    with pytest.raises(OSError, match="4"):
        lab.run(body)
    assert lab.ledger.count("try") == 4


def test_a_crash_does_not_cut_the_pause_short(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(seconds: float) -> None:
        raise Crash

    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=dies))
    op = lab.operation("try", "done", OSError("1"))
    body = lambda ctx: ctx.step(trying(max_attempts=3, backoff=600, max_backoff=600, jitter=False), op)  # noqa: E731
    lab.crash(body)
    left: list[float] = []
    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=left.append))
    assert lab.run(body) == "done"
    [pause] = left
    assert 300 < pause <= 600


def test_a_policy_that_was_shortened_meanwhile_ends_with_the_recorded_tries(lab: Lab) -> None:
    op = lab.operation("try", "done", OSError("1"), OSError("2"), Crash(), OSError("4"))
    lab.crash(lambda ctx: ctx.step(trying(max_attempts=9), op))
    with pytest.raises(OSError, match="4"):
        lab.run(lambda ctx: ctx.step(trying(max_attempts=2), op))


# -- handled errors ---------------------------------------------------------------------------------------------


def handling(op: Any, *, crash: bool = False) -> Any:
    caught: list[BaseException] = []

    def body(ctx: DurableContext) -> None:
        try:
            ctx.step("refused", op)
        except Exception as error:
            caught.append(error)
        ctx.step("after", lambda: None)
        if len(caught) == 1 and crash:
            raise Crash

    body.caught = caught  # type: ignore[attr-defined]
    return body


@everywhere
def test_a_handled_error_is_replayed_as_what_it_was(lab: Lab) -> None:
    op = lab.operation("refused", None, Refused(402, hint="call the bank"))
    body: Any = handling(op, crash=True)
    lab.crash(body)
    assert lab.entries() == ["0 ERROR refused", "1 RESULT after"]
    lab.run(body)
    first, second = body.caught
    for error in (first, second):
        assert type(error) is Refused
        assert (error.args, error.hint) == ((402,), "call the bank")
    assert lab.ledger.count("refused") == 1


def test_the_traceback_of_a_replayed_error_can_still_be_read(lab: Lab) -> None:
    body: Any = handling(lab.operation("refused", None, ValueError("x")), crash=True)
    lab.crash(body)
    lab.run(body)
    live, replayed = body.caught
    assert live.__traceback__ is not None
    assert "in operate" in getattr(replayed, TRACEBACK_ATTRIBUTE)


def test_an_error_handled_last_of_all_is_journaled_with_the_outcome(lab: Lab) -> None:
    def body(ctx: DurableContext) -> str:
        try:
            ctx.step("refused", lab.operation("refused", None, ValueError("x")))
        except ValueError:
            return "handled"
        return "not"

    assert lab.run(body) == "handled"
    assert lab.entries() == ["0 ERROR refused"]


def test_an_error_whose_class_is_gone_comes_back_as_a_placeholder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shop_errors")
    exec("class CardStolen(Exception): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "shop_errors", module)
    body: Any = handling(lab.operation("refused", None, module.CardStolen("4111", 3)), crash=True)
    lab.crash(body)
    monkeypatch.delitem(sys.modules, "shop_errors")
    lab.run(body)
    live, replayed = body.caught
    assert type(live) is module.CardStolen
    assert type(replayed) is ErrorPlaceholder
    assert replayed.original == "shop_errors.CardStolen"
    assert replayed.original_args == ("4111", 3)
    assert str(replayed).startswith(
        "[CD404] shop_errors.CardStolen: ('4111', 3) (recorded; the class cannot be rebuilt"
    )


def test_an_error_of_a_local_class_is_a_placeholder_from_the_beginning(lab: Lab) -> None:
    """What the first run gets is what every replay gives: the ``except`` clause that misses it misses it in tests."""

    class Local(Exception):
        pass

    body: Any = handling(lab.operation("refused", None, Local("x")), crash=True)
    lab.crash(body)
    lab.run(body)
    assert [type(error) for error in body.caught] == [ErrorPlaceholder, ErrorPlaceholder]


# -- escaped errors ---------------------------------------------------------------------------------------------


@everywhere
def test_an_escaped_error_is_not_journaled_and_the_next_attempt_runs_the_step_again(lab: Lab) -> None:
    before, op = lab.operation("before"), lab.operation("fetch", "done", OSError("1"), OSError("2"))

    def body(self: Any) -> Any:
        self.durable.step("before", before)
        return self.durable.step("fetch", op)

    task = lab.task("fetches", body, autoretry_for=(OSError,), retry_backoff=False)
    assert lab.apply(task) == "done"
    assert (lab.ledger.count("before"), lab.ledger.count("fetch")) == (1, 3)
    assert lab.entries() == ["0 RESULT before", "1 RESULT fetch"]


def test_an_escaped_error_is_the_outcome_and_is_raised_again(lab: Lab) -> None:
    op = lab.operation("fetch", None, Refused(402, hint="call the bank"))
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            lab.run(lambda ctx: ctx.step("fetch", op))
        assert refused.value.hint == "call the bank"
    assert lab.state() is State.FAILED
    assert lab.ledger.count("fetch") == 1


def test_an_exhausted_policy_is_over_at_the_next_attempt_too(lab: Lab) -> None:
    """Tries are journaled: Celery's retry does not begin them anew, it adds one."""
    op = lab.operation("try", "done", *[OSError(str(n)) for n in range(5)])
    task = lab.task(
        "tries", lambda self: self.durable.step(trying(max_attempts=3), op), autoretry_for=(OSError,), max_retries=1
    )
    with pytest.raises(OSError, match="3"):
        lab.apply(task)
    assert lab.ledger.count("try") == 4


def test_an_error_in_the_body_itself_leaves_the_steps_done(lab: Lab) -> None:
    op = lab.operation("before")

    def body(self: Any) -> str:
        self.durable.step("before", op)
        if self.request.retries < 2:
            raise ValueError
        return "done"

    assert lab.apply(lab.task("stumbles", body, autoretry_for=(ValueError,), retry_backoff=False)) == "done"
    assert lab.ledger.count("before") == 1
    assert [EntryKind(row.kind) for row in lab.rows()] == [EntryKind.RESULT]
