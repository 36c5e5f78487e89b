"""Branches: their positions are fixed when they are made, whatever order they come to an end in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import (
    AmbiguousEffect,
    ConfigurationError,
    ContextClosed,
    DurableContext,
    OnAmbiguous,
    StepLimitExceeded,
    step,
)
from celery_durable.journal.packing import unpacked
from celery_durable.store.records import State
from tests.integration.charging import Declined, Timeout, charging
from tests.support.lab import Crash, Lab, everywhere


def in_turns(order: list[int]) -> Callable[[int], int]:
    """An operation whose calls, one per branch, end in this order."""
    turns = [threading.Event() for _ in order]
    turns[0].set()

    def op(number: int) -> int:
        turn = order.index(number)
        assert turns[turn].wait(60)
        if turn + 1 < len(turns):
            turns[turn + 1].set()
        return number

    return op


def fan_out(op: Any, numbers: range = range(3), crash: bool = False) -> Callable[[DurableContext], list[Any]]:
    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel() as branches:
            made = [branches.step("fetch", op, number) for number in numbers]
        if crash:
            raise Crash
        return [branch.result() for branch in made]

    return body


@everywhere
def test_positions_do_not_depend_on_the_order_of_completion(lab: Lab) -> None:
    lab.run(fan_out(in_turns([0, 1, 2])), id="one")
    lab.run(fan_out(in_turns([2, 0, 1])), id="two")
    entries = ["0 SCOPE parallel", "0 SCOPE_END parallel", *[f"0.{n}/0 RESULT fetch" for n in range(3)]]
    assert lab.entries("one") == lab.entries("two") == entries
    for number, row in enumerate(lab.rows("two")[2:]):
        assert lab.runtime.codec.decode(row.codec, row.payload, "") == number


@everywhere
def test_finished_branches_are_replayed(lab: Lab) -> None:
    op = lab.operation("fetch", "page")
    lab.crash(fan_out(op, crash=True))
    assert lab.run(fan_out(op)) == ["page"] * 3
    assert lab.ledger.count("fetch") == 3


def test_only_the_unfinished_branches_go_on(lab: Lab) -> None:
    op, last = lab.operation("fetch", "page"), lab.operation("last", "end", Crash())

    def branch(ctx: DurableContext, number: int) -> list[Any]:
        return [ctx.step("fetch", op, number), ctx.step("last", last) if number == 1 else None]

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel(max_workers=1) as branches:
            made = [branches.submit(branch, ctx, number) for number in range(3)]
        return [one.result() for one in made]

    lab.crash(body)
    assert lab.run(body) == [["page", None], ["page", "end"], ["page", None]]
    assert (lab.ledger.count("fetch"), lab.ledger.count("last")) == (3, 2)


def test_a_branch_is_a_step_or_a_function_that_does_steps(lab: Lab) -> None:
    @step
    def double(number: int) -> int:
        return 2 * number

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel() as branches:
            first = branches.submit(double, 2)
            second = branches.submit(lambda: [ctx.step("a", str, 1), double(3)])
            third = branches.submit(lambda: "no step at all")
        return [first.result(), second.result(), third.result()]

    assert lab.run(body) == [4, ["1", 6], "no step at all"]
    assert lab.entries()[2:] == ["0.0/0 RESULT double", "0.1/0 RESULT a", "0.1/1 RESULT double"]


def test_a_result_may_be_asked_for_within_the_scope(lab: Lab) -> None:
    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            first = branches.step("a", lambda: 1)
            second = branches.step("b", lambda x: x + 1, first.result())
            assert first.done
        return second.result()

    assert lab.run(body) == 2


def test_scopes_nest(lab: Lab) -> None:
    op = lab.operation("fetch", "page")

    def inner(ctx: DurableContext, name: str) -> list[Any]:
        ctx.step(f"before {name}", op)
        with ctx.parallel() as branches:
            two = [branches.step(f"{name}{n}", op) for n in range(2)]
        ctx.step(f"after {name}", op)
        return [branch.result() for branch in two]

    def body(ctx: DurableContext) -> Any:
        ctx.step("first", op)
        with ctx.parallel() as branches:
            two = [branches.submit(inner, ctx, name) for name in "ab"]
        ctx.step("last", op)
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash
        return [branch.result() for branch in two]

    lab.crash(body)
    assert lab.run(body) == [["page"] * 2] * 2
    assert lab.ledger.count("fetch") == 10
    assert "1.1/1.0/0 RESULT b0" in lab.entries()
    assert len(lab.entries()) == 10 + 2 * 3


def test_no_more_branches_run_at_once_than_max_workers(lab: Lab) -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2, timeout=60)

    def op(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1

    def body(ctx: DurableContext) -> None:
        with ctx.parallel(max_workers=2) as branches:
            for number in range(6):
                branches.step("fetch", op, number)

    lab.run(body)
    assert most == 2


def test_an_empty_scope_is_replayed(lab: Lab) -> None:
    lab.crash(fan_out(None, range(0), crash=True))
    assert lab.run(fan_out(None, range(0))) == []
    assert lab.execution().generation == 1


# -- errors -----------------------------------------------------------------------------------------------------


def test_an_error_that_nobody_asked_for_comes_out_of_the_scope_the_first_one_in_order(lab: Lab) -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        lab.run(fan_out(fail))
    assert lab.state() is State.FAILED


def test_an_error_that_was_asked_for_does_not_come_out_again(lab: Lab) -> None:
    op = lab.operation("fetch", "page", ValueError("x"))

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel(max_workers=1) as branches:
            made = [branches.step("fetch", op, number) for number in range(3)]
            with pytest.raises(ValueError, match="x"):
                made[0].result()
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            ctx.step("after", lambda: None)
            raise Crash
        return [ctx.step("after", lambda: None), made[1].result()]

    lab.crash(body)
    assert "0.0/0 ERROR fetch" in lab.entries()
    assert lab.run(body) == [None, "page"]
    assert lab.ledger.count("fetch") == 3


def test_an_error_that_escaped_is_run_again_at_the_next_attempt(lab: Lab) -> None:
    op = lab.operation("fetch", "page", ValueError("x"))

    def body(self: Any) -> Any:
        with self.durable.parallel(max_workers=1) as branches:
            made = [branches.step("fetch", op, number) for number in range(3)]
        return [branch.result() for branch in made]

    task = lab.task("fans", body, autoretry_for=(ValueError,), retry_backoff=False)
    assert lab.apply(task) == ["page"] * 3
    assert lab.ledger.count("fetch") == 4


def test_an_error_that_a_branch_handles_is_replayed_in_it(lab: Lab) -> None:
    op = lab.operation("fetch", "page", ValueError("x"))

    def branch(ctx: DurableContext) -> str:
        try:
            return str(ctx.step("fetch", op))
        except ValueError:
            return f"{ctx.step('instead', lambda: 'cached')}"

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            one = branches.submit(branch, ctx)
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash
        return one.result()

    lab.crash(body)
    assert lab.run(body) == "cached"
    assert lab.ledger.count("fetch") == 1


def test_lost_knowledge_in_a_branch_parks_the_execution(lab: Lab) -> None:
    op = lab.operation("charge", "receipt", Timeout("no answer"))
    fail = charging(OnAmbiguous.FAIL)

    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.step(fail, op, 5)

    assert lab.parks(body).startswith("guarded step 'charge' (position 0.0/0) of execution one raised Timeout")


def test_a_doubt_that_the_body_handles_after_the_scope_is_settled(lab: Lab) -> None:
    op = lab.operation("charge", "receipt", Crash())
    fail = charging(OnAmbiguous.FAIL, definite=Declined)

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            branch = branches.step(fail, op, 5)
            try:
                return branch.result()
            except AmbiguousEffect:
                pass
        return ctx.step("instead", lambda: "by hand")

    lab.crash(body)
    assert lab.run(body) == "by hand"
    assert lab.ledger.count("charge") == 1
    assert "0.0/0 ERROR charge" in lab.entries()


def test_the_bodys_own_error_in_the_scope_outweighs_those_of_branches(lab: Lab) -> None:
    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.step("fetch", lambda: 1 / 0)
            raise KeyError("the body's")

    with pytest.raises(KeyError):
        lab.run(body)


# -- misuse -----------------------------------------------------------------------------------------------------


def test_a_scope_takes_branches_only_while_it_is_open(lab: Lab) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.parallel().submit(len, "")

    with pytest.raises(ContextClosed) as closed:
        lab.run(body)
    assert str(closed.value) == (
        "[CD203] submit() was called outside its parallel scope. Write: with self.durable.parallel() as branches: "
        "branches.submit(function, ...)"
    )


def test_a_scope_has_at_least_one_worker(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match=r"parallel\(max_workers=0\): at least one thread is needed"):
        lab.run(lambda ctx: ctx.parallel(max_workers=0))


def test_a_coroutine_function_is_no_branch_of_a_plain_scope(lab: Lab) -> None:
    async def branch() -> None:
        """Never runs."""

    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.submit(branch)

    with pytest.raises(ConfigurationError, match="is a coroutine function; its branch needs 'async with"):
        lab.run(body)


def test_scopes_that_are_nested_too_deeply_are_refused(lab: Lab) -> None:
    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.submit(body, ctx).result()

    with pytest.raises(StepLimitExceeded, match="parallel scopes are nested too deeply in execution one"):
        lab.run(body)


# -- threads of the body's own ----------------------------------------------------------------------------------


def test_a_thread_that_the_body_starts_may_use_its_context(lab: Lab) -> None:
    op = lab.operation("fetch", "page")
    found: list[Any] = []

    def body(ctx: DurableContext) -> None:
        thread = threading.Thread(target=lambda: found.append(ctx.step("in a thread", op)))
        thread.start()
        thread.join()
        found.append(ctx.step("after", op))
        if len(found) == 2:
            raise Crash

    lab.crash(body)
    lab.run(body)
    assert found == ["page"] * 4
    assert lab.ledger.count("fetch") == 2
    assert lab.entries() == ["0 RESULT in a thread", "1 RESULT after"]


def test_a_thread_that_outlives_the_body_is_told(lab: Lab) -> None:
    ended, errors = threading.Event(), []

    def late(ctx: DurableContext) -> None:
        ended.wait(60)
        try:
            ctx.step("late", lambda: None)
        except ContextClosed as error:
            errors.append(str(error))

    threads = []

    def body(ctx: DurableContext) -> None:
        threads.append(threading.Thread(target=late, args=(ctx,)))
        threads[0].start()

    lab.run(body)
    ended.set()
    threads[0].join(60)
    [error] = errors
    assert error == (
        "[CD203] the durable context of execution one was used after its body had ended. Do all steps before the task "
        "returns; wait for the threads and coroutines that it starts."
    )


def test_many_threads_make_many_steps_and_lose_none(lab: Lab) -> None:
    """Their order is theirs; but every step has a position of its own, and is journaled."""

    def body(ctx: DurableContext) -> None:
        with ctx.parallel(max_workers=8) as branches:
            for number in range(16):
                branches.submit(lambda n: [ctx.step("s", lambda i: i, 100 * n + i) for i in range(20)], number)

    lab.run(body)
    rows = [row for row in unpacked(lab.rows()) if row.name == "s"]
    values = [lab.runtime.codec.decode(row.codec, row.payload, "") for row in rows]
    assert sorted(values) == sorted(100 * n + i for n in range(16) for i in range(20))
    assert lab.execution().steps == 320
