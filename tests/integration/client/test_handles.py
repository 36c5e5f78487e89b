"""An execution from outside: what it does, what it returned, and what can be done to it."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery

import celery_durable
from celery_durable import (
    DurableContext,
    Effect,
    ExecutionCancelled,
    ExecutionHandle,
    ExecutionParked,
    OnAmbiguous,
    ResultLost,
    ResultTimeout,
    Retry,
    State,
    StepDescriptor,
    StepOutcome,
    UnknownExecution,
    WrongState,
    step,
)
from celery_durable.store.tables import executions, payloads
from tests.integration.charging import Timeout, charging
from tests.support.lab import Crash, Lab, everywhere

CHARGE = charging(OnAmbiguous.FAIL)


@dataclass(frozen=True)
class Receipt:
    id: str
    total: Decimal


class Refused(Exception):
    """What a body raises."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def handle(lab: Lab, id: str = "one") -> ExecutionHandle:  # noqa: A002
    return celery_durable.get(id, lab.app)


def parked(lab: Lab) -> ExecutionHandle:
    lab.parks(lambda ctx: ctx.step(CHARGE, lab.operation("charge", None, Timeout("no answer"))))
    return handle(lab)


def pending(lab: Lab) -> ExecutionHandle:
    lab.app.conf.update(task_default_queue="handles")
    lab.job.apply_async(durable_id="one")
    return handle(lab)


# -- finding it ---------------------------------------------------------------------------------------------------


@everywhere
def test_an_unknown_id_has_no_handle(lab: Lab) -> None:
    lab.run(lambda ctx: 1)
    assert handle(lab).id == "one"
    for unknown in ("One", "two", ""):
        with pytest.raises(UnknownExecution, match=f"no execution '{unknown}' in namespace 'lab'"):
            handle(lab, unknown)


def test_without_an_app_it_is_that_of_the_current_one(lab: Lab) -> None:
    lab.run(lambda ctx: "value")
    before = Celery("before", set_as_current=False)
    lab.app.set_current()
    try:
        assert celery_durable.get("one").result() == "value"
    finally:
        before.set_current()


# -- looking ------------------------------------------------------------------------------------------------------


@everywhere
def test_its_status_says_what_it_does(lab: Lab) -> None:
    earlier = dt.datetime.now(dt.timezone.utc) - dt.timedelta(minutes=1)
    status = pending(lab).status()
    assert (status.id, status.task, status.state, status.steps) == ("one", "job", State.PENDING, 0)
    assert (status.attempts, status.retries, status.generation) == (0, 0, 1)
    assert (status.reason, status.pruned_at, status.finished, status.parked) == (None, None, False, False)
    assert status.wakes_at is not None
    assert earlier < status.created_at <= status.updated_at < status.wakes_at
    assert status.created_at.utcoffset() == dt.timedelta(0)
    lab.run(lambda ctx: ctx.step("a", lambda: 1))
    ended = handle(lab).status()
    assert (ended.state, ended.steps, ended.finished, ended.wakes_at) == (State.COMPLETED, 1, True, None)


def test_the_status_of_a_parked_one_says_why(lab: Lab) -> None:
    status = parked(lab).status()
    assert (status.state, status.parked, status.finished) == (State.AMBIGUOUS, True, False)
    assert "raised Timeout. That may hide a success" in (status.reason or "")


@step
def receipt(number: int) -> Receipt:
    return Receipt(f"r{number}", Decimal("9.99"))


def all_kinds(lab: Lab) -> Callable[[DurableContext], Any]:
    tried = StepDescriptor.idempotent("tried", retry=Retry(max_attempts=2, backoff=0.0))
    flaky = lab.operation("tried", "x", ConnectionError("once"))

    def body(ctx: DurableContext) -> Any:
        receipt(1)
        ctx.step(tried, flaky)
        ctx.step(charging(OnAmbiguous.RERUN), lab.operation("charge", {"paid": 5}))
        with pytest.raises(ZeroDivisionError):
            ctx.step("broken", lambda: 1 // 0)
        with ctx.parallel() as branches:
            branches.step("left", len, "ab")
            branches.step("right", len, "abc")
        with pytest.raises(ResultLost):
            ctx.step(charging(OnAmbiguous.RERUN), lab.operation("lost", object()), 7)
        return ctx.step("last", lambda: None)

    return body


@everywhere
def test_its_steps_are_those_of_the_journal(lab: Lab) -> None:
    lab.run(all_kinds(lab))
    steps = handle(lab).steps()
    assert [(s.position, s.name, s.outcome.value, s.attempts) for s in steps] == [
        ("0", "receipt", "done", 1),
        ("1", "tried", "done", 2),
        ("2", "charge", "done", 1),
        ("3", "broken", "failed", 1),
        ("4.0/0", "left", "done", 1),
        ("4.1/0", "right", "done", 1),
        ("5", "charge", "lost", 1),
        ("6", "last", "done", 1),
    ]
    assert [s.effect for s in steps[:3]] == [Effect.IDEMPOTENT, Effect.IDEMPOTENT, Effect.EXACTLY_ONCE_GUARDED]
    assert [s.key is not None and len(s.key) for s in steps[:3]] == [False, False, 32]
    assert all(isinstance(s.duration, dt.timedelta) and s.at.tzinfo is dt.timezone.utc for s in steps)
    assert steps[0].value() == Receipt("r1", Decimal("9.99"))
    assert [s.value() for s in steps if s.outcome is StepOutcome.DONE][1:] == ["x", {"paid": 5}, 2, 3, None]
    assert (type(steps[3].error()), steps[0].error()) == (ZeroDivisionError, None)
    lost = steps[6].error()
    assert isinstance(lost, ResultLost)
    assert (lost.execution_id, lost.step_id, lost.step) == (handle(lab).id, steps[6].position, "charge")
    for number in (3, 6):
        with pytest.raises(WrongState, match=f"position {steps[number].position}\\) is (failed|lost); it has no value"):
            steps[number].value()


def test_values_are_read_when_they_are_asked_for(lab: Lab) -> None:
    lab.run(all_kinds(lab))
    steps = handle(lab).steps()
    assert "r1" not in repr(steps)
    lab.change_row("last", payload=b"broken")
    assert steps[0].value() == Receipt("r1", Decimal("9.99"))
    with pytest.raises(celery_durable.PayloadError):
        steps[-1].value()


def test_values_of_folded_steps_are_found(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=20)
    lab.run(lambda ctx: [ctx.step("each", str, number) for number in range(20)])
    assert any("CHECKPOINT" in entry for entry in lab.entries())
    assert [s.value() for s in handle(lab).steps()] == [str(number) for number in range(20)]


# -- the result ---------------------------------------------------------------------------------------------------


@everywhere
def test_its_result_is_what_the_body_returned(lab: Lab) -> None:
    lab.run(lambda ctx: receipt(3))
    assert handle(lab).result() == handle(lab).result(timeout=0) == Receipt("r3", Decimal("9.99"))
    assert asyncio.run(handle(lab).aresult()) == Receipt("r3", Decimal("9.99"))


def _raise(error: BaseException) -> Any:
    raise error


@everywhere
def test_its_error_is_what_the_body_raised(lab: Lab) -> None:
    with pytest.raises(Refused):
        lab.run(lambda ctx: _raise(Refused(402)))
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            handle(lab).result()
        assert caught.value.code == 402
    with pytest.raises(Refused):
        asyncio.run(handle(lab).aresult())


def _result(found: ExecutionHandle, timeout: float | None, coroutine: bool) -> Any:
    return asyncio.run(found.aresult(timeout)) if coroutine else found.result(timeout)


@pytest.mark.parametrize("coroutine", [False, True], ids=["result", "aresult"])
def test_a_result_that_does_not_come_is_not_waited_for_any_longer(lab: Lab, coroutine: bool) -> None:
    found = pending(lab)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError) as caught:
            _result(found, timeout, coroutine)
        assert str(caught.value) == (
            f"[CD008] execution one of task job has not ended within {timeout:g} s; it is pending. It continues: ask "
            "again later."
        )
        assert isinstance(caught.value, ResultTimeout)
        assert caught.value.state == "pending"


@everywhere
@pytest.mark.parametrize("coroutine", [False, True], ids=["result", "aresult"])
def test_a_result_that_is_still_to_come_is_waited_for(lab: Lab, coroutine: bool) -> None:
    found = pending(lab)
    looked = threading.Event()
    real = found._ended

    def ended() -> Any:
        answer = real()
        looked.set()
        return answer

    found._ended = ended  # type: ignore[method-assign]

    def work() -> None:
        assert looked.wait(30)
        lab.run(lambda ctx: "done")

    worker = threading.Thread(target=work)
    worker.start()
    assert _result(found, None, coroutine) == "done"
    worker.join()


@everywhere
@pytest.mark.parametrize("coroutine", [False, True], ids=["result", "aresult"])
def test_a_parked_one_has_no_result_and_says_why(lab: Lab, coroutine: bool) -> None:
    with pytest.raises(ExecutionParked, match="is parked as ambiguous and waits for an operator: guarded") as caught:
        _result(parked(lab), None, coroutine)
    assert (caught.value.execution_id, caught.value.state) == ("one", "ambiguous")
    assert "Timeout" in caught.value.reason


def test_one_that_ended_by_ignore_has_none(lab: Lab) -> None:
    from celery.exceptions import Ignore

    with pytest.raises(BaseException):  # noqa: B017, PT011
        lab.run(lambda ctx: _raise(Ignore()))
    assert handle(lab).result(timeout=0) is None


@everywhere
@pytest.mark.parametrize("fails", [False, True], ids=["completed", "failed"])
def test_the_result_of_a_pruned_one_is_gone(lab: Lab, fails: bool) -> None:
    if fails:
        with pytest.raises(Refused):
            lab.run(lambda ctx: (ctx.step("a", str, 1), _raise(Refused(1))))
    else:
        lab.run(lambda ctx: ctx.step("a", str, 1))
    found = handle(lab)
    [only] = found.steps()
    pk = lab.execution().pk
    lab.sql(sa.delete(payloads).where(payloads.c.pk == pk))
    lab.sql(sa.text("DELETE FROM durable_journal"))
    lab.sql(sa.update(executions).values(pruned_at=1_800_000_000_000))
    with pytest.raises(WrongState, match=r"was pruned on 2027-01-15: its result is gone"):
        found.result()
    assert found.status().pruned_at == dt.datetime.fromtimestamp(1_800_000_000, dt.timezone.utc)
    assert found.steps() == []
    with pytest.raises(WrongState, match="its journal was pruned"):
        only.value()


# -- acting -------------------------------------------------------------------------------------------------------


@everywhere
def test_it_can_be_cancelled(lab: Lab) -> None:
    found = pending(lab)
    found.cancel("the customer left")
    status = found.status()
    assert (status.state, status.reason, status.finished) == (State.CANCELLED, "the customer left", True)
    with pytest.raises(ExecutionCancelled, match="execution one was cancelled: the customer left") as caught:
        found.result()
    assert caught.value.reason == "the customer left"


def test_cancelling_tells_those_who_wait_for_celerys_result(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(result_backend="cache+memory://")
    found = pending(lab)
    found.cancel()
    assert lab.app.AsyncResult("one").state == "REVOKED"
    with pytest.raises(WrongState, match="cancelled already"):
        found.cancel()


def test_what_has_ended_cannot_be_cancelled(lab: Lab) -> None:
    lab.run(lambda ctx: 1)
    with pytest.raises(WrongState, match="execution one is completed already; there is nothing to cancel"):
        handle(lab).cancel()


@everywhere
def test_it_can_be_resumed(lab: Lab) -> None:
    op = lab.operation("work")
    with pytest.raises(Refused):
        lab.run(lambda ctx: (ctx.step("work", op), _raise(Refused(1))))
    handle(lab).resume()
    assert handle(lab).status().state is State.PENDING
    assert lab.run(lambda ctx: (ctx.step("work", op), "now")[1]) == "now"
    assert lab.ledger.count("work") == 1
    with pytest.raises(WrongState, match="is completed; only ambiguous, quarantined and failed"):
        handle(lab).resume()


def test_it_can_be_looked_at_while_it_runs(lab: Lab) -> None:
    seen: list[Any] = []

    def body(ctx: DurableContext) -> None:
        ctx.step("first", lambda: 1)
        ctx.step(charging(OnAmbiguous.RERUN), lambda: seen.append((handle(lab).status(), handle(lab).steps())))
        raise Crash

    lab.crash(body)
    [(status, steps)] = seen
    assert status.state is State.RUNNING
    assert [(s.name, s.outcome) for s in steps] == [("first", StepOutcome.DONE), ("charge", StepOutcome.TRYING)]
    with pytest.raises(WrongState, match="is trying; it has no value"):
        steps[1].value()
