"""What an execution may use up, and what cannot be stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import (
    DurableContext,
    FingerprintError,
    OnAmbiguous,
    PayloadError,
    PayloadTooLarge,
    ResultLost,
    Retry,
    StepDescriptor,
    StepLimitExceeded,
    current_step,
)
from celery_durable.journal.cursor import SEGMENT
from celery_durable.store.records import EntryKind, State
from celery_durable.store.tables import payloads
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab, everywhere

RERUN = charging(OnAmbiguous.RERUN)


def counting(op: Any, steps: int, guarded: tuple[int, ...] = (), crash: bool = False) -> Callable[..., list[Any]]:
    """A body of many steps, guarded ones among them."""

    def body(ctx: DurableContext) -> list[Any]:
        found = [ctx.step(RERUN if n in guarded else "count", op, n) for n in range(steps)]
        if crash:
            raise Crash
        return found

    return body


# -- steps ------------------------------------------------------------------------------------------------------


def test_a_body_may_ask_for_so_many_steps_and_no_more(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=5)
    op = lab.operation("op")
    lab.run(counting(op, 5), id="five")
    with pytest.raises(StepLimitExceeded) as limit:
        lab.run(counting(op, 6), id="six")
    assert str(limit.value) == (
        "[CD204] execution six asks for more than 5 steps (durable_max_steps), the last one is 'count'. Split the work "
        "into several tasks, put more work into one step, or raise the setting."
    )
    assert lab.ledger.count("op") == 10


def test_replayed_steps_count_too_and_scopes(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=4)
    op = lab.operation("op")

    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            for n in range(2):
                branches.step("in a branch", op, n)
        ctx.step("a", op)
        ctx.step("b", op)

    lab.crash(counting(op, 4, crash=True), id="one")
    with pytest.raises(StepLimitExceeded):
        lab.run(counting(op, 5), id="one")
    with pytest.raises(StepLimitExceeded):
        lab.run(body, id="two")


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_body_that_swallows_the_limit_gets_no_further(make_lab: Callable[..., Lab], kind: Any) -> None:
    lab = make_lab(durable_max_steps=5)
    op = lab.operation("op")

    def body(ctx: DurableContext) -> str:
        for n in range(50):
            try:
                ctx.step("count", op, n)
            except kind:
                pass
        return "done"

    assert lab.run(body) == "done"
    assert lab.ledger.count("op") == 5


# -- checkpoints ------------------------------------------------------------------------------------------------

#: Their steps take longer than ``durable_flush_interval``, and so are committed one by one.
one_by_one = pytest.mark.usefixtures("unpacked")


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_durable.journal.writer.packed", lambda batch: batch)


STEPS = 240
GUARDED = (20, 120, 121, 230)


@everywhere
@one_by_one
def test_past_nine_tenths_of_the_cap_finished_steps_are_folded(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=250)

    def op(number: int) -> list[Any]:
        lab.ledger.fire("op")
        return [number, ("a", "tuple"), current_step().step_id]

    lab.crash(counting(op, 200, GUARDED, crash=True))
    unfolded = lab.rows()
    lab.crash(counting(op, STEPS, GUARDED, crash=True))
    rows = lab.rows()
    kinds = [EntryKind(row.kind) for row in rows]
    # Steps 0 to 225 are folded, the guarded ones among them stay, what came after the fold is there too.
    assert kinds.count(EntryKind.CHECKPOINT) >= 3
    assert len(rows) < 60 < len(unfolded)
    assert kinds.count(EntryKind.INTENT) == len(GUARDED)
    guarded = [row for row in unfolded if row.key is not None]
    assert [row for row in rows if row.key is not None][: len(guarded)] == guarded

    values = lab.run(counting(op, STEPS, GUARDED))
    assert values == [[n, ("a", "tuple"), str(n)] for n in range(STEPS)]
    assert lab.ledger.count("op") == STEPS
    assert lab.execution().generation == 1
    assert lab.execution().steps == STEPS


@one_by_one
def test_a_resume_reads_a_few_checkpoints_at_a_time(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a segment of steps: read by the hundred, they would be the whole history."""
    lab = make_lab(durable_max_steps=700)
    op = lab.operation("op", 1)
    lab.crash(counting(op, 650, crash=True))
    read: list[int] = []
    journal = lab.runtime.journal
    segment = journal.segment

    def watched(*place: Any) -> list[Any]:
        rows = segment(*place)
        read.append(sum(row.kind == EntryKind.CHECKPOINT for row in rows))
        return rows

    monkeypatch.setattr(journal, "segment", watched)
    lab.run(counting(op, 650))
    assert sum(read) > 6
    assert max(read) == 4


@one_by_one
def test_what_was_folded_is_compared_as_before(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=100, durable_on_divergence="park")
    op = lab.operation("op")
    lab.crash(counting(op, 95, crash=True))
    assert "0 CHECKPOINT checkpoint" in lab.entries()

    def changed(ctx: DurableContext) -> None:
        counting(op, 40)(ctx)
        ctx.step("another", op)

    assert lab.parks(changed).startswith(
        "[CD101] execution one diverged from its journal at position 40: another step was recorded."
    )


@one_by_one
def test_steps_that_were_tried_twice_handled_errors_and_scopes_survive_the_fold(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=50)
    tried = StepDescriptor.idempotent("tried", retry=Retry(2, backoff=0))
    op = lab.operation("op")
    flaky = lab.operation("flaky", "done", OSError("1"))
    broken = lab.operation("broken", None, ValueError("x"))

    def body(ctx: DurableContext) -> Any:
        ctx.step("first", op)
        found = [ctx.step_recorded(tried, flaky)[3:]]
        try:
            ctx.step("broken", broken)
        except ValueError as error:
            found.append(error.args)
        with ctx.parallel() as branches:
            branches.step("in a branch", op)
        counting(op, 44)(ctx)
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash
        return found

    lab.crash(body)
    rows = lab.entries()
    assert rows[:4] == ["0 CHECKPOINT checkpoint", "2 ERROR broken", "3 SCOPE parallel", "3 SCOPE_END parallel"]
    assert lab.run(body) == [("done", True, False, 2), ("x",)]
    assert lab.ledger.count("op") == 46


@one_by_one
def test_a_replay_holds_one_checkpoint_at_a_time(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=1100)
    op = lab.operation("op")
    lab.crash(counting(op, 1050, crash=True))
    assert [row.kind for row in lab.rows()].count(EntryKind.CHECKPOINT) > 5
    held = 0

    def body(ctx: DurableContext) -> None:
        nonlocal held
        for number in range(1050):
            ctx.step("count", op, number)
            held = max(held, len(ctx._body.cursor._groups))

    lab.run(body)
    assert lab.ledger.count("op") == 1050
    assert SEGMENT / 2 < held <= SEGMENT


@one_by_one
def test_a_step_of_another_thread_that_ends_after_the_fold_is_kept(make_lab: Callable[..., Lab]) -> None:
    """Its place is empty while its neighbours are folded."""
    lab = make_lab(durable_max_steps=100)
    begun, folded = threading.Event(), threading.Event()

    def slow() -> str:
        lab.ledger.fire("slow")
        begun.set()
        folded.wait(30)
        return "late"

    def body(ctx: DurableContext, crash: bool) -> list[Any]:
        found: list[Any] = [ctx.step("count", int, n) for n in range(5)]
        other = threading.Thread(target=lambda: found.append(ctx.step("slow", slow)))
        other.start()
        if crash:
            begun.wait(30)
        else:
            other.join()
        found += [ctx.step("count", int, n) for n in range(90)]
        folded.set()
        other.join()
        if crash:
            raise Crash
        return found

    lab.crash(body, True)
    assert lab.entries()[:3] == ["0 CHECKPOINT checkpoint", "5 RESULT slow", "6 CHECKPOINT checkpoint"]
    assert lab.run(body, False) == [*range(5), "late", *range(90)]
    assert lab.ledger.count("slow") == 1


@one_by_one
def test_a_place_with_more_entries_than_one_read_is_passed_by(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_steps=50)
    tries = 5 * SEGMENT
    stubborn = StepDescriptor.idempotent("stubborn", retry=Retry(tries, backoff=0))
    op = lab.operation("op")
    errors = [OSError("not yet")] * (tries - 1)
    flaky = lab.operation("flaky", "done", *errors)

    def body(ctx: DurableContext, crash: bool) -> Any:
        value = ctx.step(stubborn, flaky)
        counting(op, 48)(ctx)
        if crash:
            raise Crash
        return value

    lab.crash(body, True)
    assert lab.run(body, False) == "done"
    assert (lab.ledger.count("flaky"), lab.ledger.count("op")) == (tries, 48)


# -- sizes ------------------------------------------------------------------------------------------------------


def test_a_result_that_is_too_large_is_an_error_that_names_it(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_payload_bytes=1000)
    with pytest.raises(PayloadTooLarge) as large:
        lab.run(lambda ctx: ctx.step("big", lambda: "x" * 1001))
    assert str(large.value) == (
        "[CD402] the result of step 'big' (position 0) takes 1003 bytes encoded; the limit is 1000 bytes (setting "
        "durable_max_payload_bytes). Store the data elsewhere and pass a reference to it, or raise the setting."
    )
    assert lab.entries() == []


def test_a_return_value_that_is_too_large_is_an_error_that_names_the_task(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_payload_bytes=1000)
    op = lab.operation("op")

    def body(ctx: DurableContext) -> str:
        ctx.step("a", op)
        return "x" * 2000

    with pytest.raises(PayloadTooLarge, match="the return value of task 'job' takes more than 1000 bytes"):
        lab.run(body)
    assert lab.state() is State.FAILED


@everywhere
def test_a_row_that_grew_is_refused_before_it_is_decoded(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_payload_bytes=1000)
    op = lab.operation("op", "value")
    body = counting(op, 3, crash=True)
    lab.crash(body)
    bomb = b"[" * 5000  # Not even JSON: whoever decodes it says something else.
    lab.change_row("count", payload=bomb)
    assert lab.parks(counting(op, 3)).startswith(
        "the journaled result of step 'count' (position 0) takes 5000 bytes encoded; the limit is 1000 bytes (setting "
        "durable_max_payload_bytes). Store the data elsewhere and pass a reference to it, or raise the setting."
    )
    assert lab.ledger.count("op") == 3


def test_an_outcome_that_grew_is_refused_too(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_max_payload_bytes=1000)
    lab.run(lambda ctx: "done")
    lab.sql(sa.update(payloads).values(data=b"[" * 5000))
    with pytest.raises(PayloadTooLarge, match=r"the stored outcome of job\[one\] takes 5000 bytes"):
        lab.run(lambda ctx: pytest.fail("the body ran"))


# -- values that cannot be stored -------------------------------------------------------------------------------


class Socket:
    """Nothing that could be stored."""

    def __repr__(self) -> str:
        return "<socket>"


def test_an_argument_without_a_canonical_form_is_named_with_its_path(lab: Lab) -> None:
    op = lab.operation("op")
    with pytest.raises(FingerprintError) as refused:
        lab.run(lambda ctx: ctx.step("send", op, 1, {"via": [Socket()]}))
    said = str(refused.value)
    assert said.startswith("[CD201] argument 2 of step 'send'")
    assert "$.via[0]" in said
    assert "tests.integration.replay.test_limits.Socket" in said
    assert "fingerprint=" in said
    assert lab.ledger.count("op") == 0


def test_fingerprint_takes_the_place_of_such_arguments(lab: Lab) -> None:
    send = StepDescriptor.idempotent("send", fingerprint=lambda socket, text: text)
    assert lab.run(lambda ctx: ctx.step(send, lambda socket, text: text, Socket(), "hello")) == "hello"


def test_a_fingerprint_without_a_canonical_form_is_refused_too(lab: Lab) -> None:
    send = StepDescriptor.idempotent("send", fingerprint=lambda socket: socket)
    with pytest.raises(FingerprintError, match=r"the value that fingerprint= of step 'send' returned"):
        lab.run(lambda ctx: ctx.step(send, lab.operation("op"), Socket()))
    assert lab.ledger.count("op") == 0


UNENCODABLE = (
    "the result of step '{}' (position 0) cannot be stored in the journal: $.sockets[1] is a "
    "'tests.integration.replay.test_limits.Socket', which cannot be rebuilt from data."
)


def test_a_result_that_cannot_be_stored_is_named_with_its_path(lab: Lab) -> None:
    op = lab.operation("open", {"sockets": [1, Socket()]})
    with pytest.raises(PayloadError) as refused:
        lab.run(lambda ctx: ctx.step("open", op))
    assert str(refused.value).startswith(f"[CD401] {UNENCODABLE.format('open')}")
    assert lab.state() is State.FAILED


def test_an_idempotent_step_without_a_result_is_run_again(lab: Lab) -> None:
    op = lab.operation("open", Socket())

    def body(ctx: DurableContext) -> str:
        try:
            ctx.step("open", op)
        except PayloadError:
            ctx.step("after", lambda: None)
        if lab.ledger.count("open") == 1:
            raise Crash
        return "done"

    lab.crash(body)
    assert lab.run(body) == "done"
    assert lab.ledger.count("open") == 2


@everywhere
@pytest.mark.parametrize("policy", [OnAmbiguous.RERUN, OnAmbiguous.FAIL])
def test_a_guarded_operation_whose_result_is_lost_is_never_run_again(lab: Lab, policy: OnAmbiguous) -> None:
    op = lab.operation("charge", {"sockets": [1, Socket()]})
    messages: list[str] = []

    def body(ctx: DurableContext) -> str:
        try:
            ctx.step(charging(policy), op)
        except ResultLost as error:
            messages.append(str(error))
        ctx.step("after", lambda: None)
        if len(messages) < 3:
            raise Crash
        return "done"

    for _ in range(2):
        lab.crash(body)
    assert lab.run(body) == "done"
    assert lab.ledger.count("charge") == 1
    assert len(messages) == 3
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "[CD304] step 'charge' (position 0) of execution one was done, but its result could not be stored; it is not "
        f"run again. {UNENCODABLE.format('charge')}"
    )
    assert lab.entries() == ["0 INTENT charge", "0 LOST charge", "1 RESULT after"]


def test_a_lost_result_is_not_retried(lab: Lab) -> None:
    op = lab.operation("charge", Socket())
    task = lab.task(
        "charges",
        lambda self: self.durable.step(charging(OnAmbiguous.RERUN, retry=Retry(5, backoff=0)), op),
        autoretry_for=(Exception,),
    )
    with pytest.raises(ResultLost):
        lab.apply(task)
    assert lab.ledger.count("charge") == 1
    assert lab.state() is State.FAILED


def test_the_assumed_value_is_stored_like_a_result(lab: Lab) -> None:
    op = lab.operation("charge", None, Crash())
    skip = charging(OnAmbiguous.SKIP, assumed=Socket())
    lab.crash(lambda ctx: ctx.step(skip, op))
    with pytest.raises(PayloadError, match=r"the assumed value of step 'charge' \(position 0\) cannot be stored"):
        lab.run(lambda ctx: ctx.step(skip, op))
    assert lab.ledger.count("charge") == 1
