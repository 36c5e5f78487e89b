"""What a body has besides steps: recorded time and chance, facts about its run, and a logger that keeps silent."""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import ContextClosed, DurableContext, NestedStep, get_logger
from tests.support.lab import Crash, Lab

log = get_logger("tests.body")


def die(ctx: DurableContext, lab: Lab) -> None:
    """Kills the first attempt here."""
    ctx.step("die", lab.operation("die", None, *([] if lab.ledger.count("die") else [Crash()])))


def twice(lab: Lab, body: Callable[[DurableContext], Any]) -> list[Any]:
    """What the body comes to before the process dies, and what it comes to when it is replayed."""
    seen = []

    def attempt(ctx: DurableContext) -> None:
        seen.append(body(ctx))
        die(ctx, lab)

    lab.crash(attempt)
    lab.run(attempt)
    return seen


# -- what varies ------------------------------------------------------------------------------------------------


def test_time_and_chance_are_drawn_once(lab: Lab) -> None:
    before = dt.datetime.now(dt.timezone.utc)
    first, second = twice(lab, lambda ctx: [ctx.now(), ctx.now(), ctx.uuid4(), ctx.uuid4(), ctx.random(), ctx.random()])
    after = dt.datetime.now(dt.timezone.utc)
    assert first == second
    early, late, one, two, low, high = first
    assert before <= early <= late <= after
    assert early.tzinfo is dt.timezone.utc
    assert (one.version, two.version, one == two, type(one)) == (4, 4, False, uuid.UUID)
    assert 0 <= low < 1
    assert low != high


def test_they_are_steps_like_any_other(lab: Lab) -> None:
    lab.run(lambda ctx: [ctx.now(), ctx.uuid4(), ctx.random()])
    assert lab.entries() == ["0 RESULT durable.now", "1 RESULT durable.uuid4", "2 RESULT durable.random"]
    with pytest.raises(NestedStep):
        lab.run(lambda ctx: ctx.step("outer", ctx.now), id="two")


def test_branches_draw_for_themselves(lab: Lab) -> None:
    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel() as branches:
            drawn = [branches.submit(ctx.uuid4) for _ in range(3)]
        return [branch.result() for branch in drawn]

    first, second = twice(lab, body)
    assert first == second
    assert len(set(first)) == 3


# -- facts ------------------------------------------------------------------------------------------------------


def test_a_body_knows_its_execution_and_how_often_it_was_taken_over(lab: Lab) -> None:
    seen: list[Any] = []

    def body(ctx: DurableContext) -> None:
        seen.append((ctx.execution_id, ctx.attempt))
        die(ctx, lab)

    lab.crash(body)
    lab.run(body)
    # A run that is given back by its own process, as an eager one is, was not taken over.
    assert seen == [("one", 0), ("one", 0)]


def test_a_body_replays_until_the_first_step_that_the_journal_does_not_have(lab: Lab) -> None:
    seen: list[list[bool]] = []

    def body(ctx: DurableContext) -> None:
        seen.append([ctx.replaying])
        for name in "ab":
            ctx.step(name, len, "")
            seen[-1].append(ctx.replaying)
        die(ctx, lab)
        seen[-1].append(ctx.replaying)

    lab.crash(body)
    lab.run(body)
    assert seen == [[False, False, False], [True, True, False, False]]


def test_facts_are_known_after_the_end_but_steps_are_refused(lab: Lab) -> None:
    kept: list[DurableContext] = []
    lab.run(kept.append)
    [ctx] = kept
    assert ctx.execution_id == "one"
    for use in (ctx.now, lambda: ctx.step("late", len, ""), ctx.parallel, lambda: ctx.patched("x")):
        with pytest.raises(ContextClosed) as closed:
            use()
        assert closed.value.message == (
            "the durable context of execution one was used after its body had ended. Do all steps before the task "
            "returns; wait for the threads and coroutines that it starts."
        )


# -- the logger -------------------------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == name]


@pytest.mark.parametrize("which", ["self.durable.logger", "get_logger"])
def test_a_line_is_logged_once_however_often_the_body_is_replayed(
    lab: Lab, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    caplog.set_level(logging.INFO, logger="job" if which == "self.durable.logger" else "tests.body")

    def body(ctx: DurableContext) -> None:
        logger = ctx.logger if which == "self.durable.logger" else log
        logger.info("begins")
        ctx.step("a", len, "")
        logger.info("a is done")
        die(ctx, lab)
        logger.info("has not died")

    lab.crash(body)
    assert told(caplog, "job" if which == "self.durable.logger" else "tests.body") == ["begins", "a is done"]
    caplog.clear()
    lab.run(body)
    # The last line before the death may be told again: nobody knows whether it was read.
    assert told(caplog, "job" if which == "self.durable.logger" else "tests.body") == ["a is done", "has not died"]


def test_an_operation_is_never_silent_and_its_records_name_it(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tests.body")

    def operate() -> None:
        log.info("runs", extra={"order": 7})

    lab.run(lambda ctx: (ctx.step("a", operate), log.info("done"))[0])
    ours = [r for r in caplog.records if r.name == "tests.body"]
    assert [
        (r.getMessage(), r.execution_id, getattr(r, "step", None), getattr(r, "step_attempt", None))  # type: ignore[attr-defined]
        for r in ours
    ] == [("runs", "one", "a", 1), ("done", "one", None, None)]
    assert ours[0].order == 7  # type: ignore[attr-defined]


def test_an_operation_is_heard_while_later_steps_are_still_to_be_replayed(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tests.body")

    async def crash() -> None:
        raise Crash

    async def slow() -> None:
        log.info("runs")

    async def fast() -> None:
        pass

    async def overtaken(ctx: DurableContext) -> None:
        first = ctx.step("slow", crash)
        await ctx.step("fast", fast)
        await first

    async def in_order(ctx: DurableContext) -> None:
        await ctx.step("slow", slow)
        await ctx.step("fast", fast)

    lab.crash(overtaken)
    lab.run(in_order)
    assert told(caplog, "tests.body") == ["runs"]


def test_outside_a_body_it_is_an_ordinary_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="tests.body")
    log.info("too low")
    log.warning("heard")
    [record] = [record for record in caplog.records if record.name == "tests.body"]
    assert (record.getMessage(), hasattr(record, "execution_id")) == ("heard", False)
    assert not log.isEnabledFor(logging.INFO)
