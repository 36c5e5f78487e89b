"""Tasks that run where they are called: eagerly, and as the plain functions they were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group, states

from celery_durable import DurableTask, JournalUnavailable, State, resolve, step
from celery_durable.execution.session import current_session
from celery_durable.runtime import Runtime
from tests.support.lab import Crash, Lab

calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@step
def double(number: int) -> int:
    calls.append(number)
    return 2 * number


def doubled(task: DurableTask, number: int) -> int:
    return double(number)


def plus_one(number: int) -> int:
    return number + 1


async def double_later(number: int) -> int:
    calls.append(number)
    return 2 * number


async def doubled_later(task: DurableTask, number: int) -> int:
    return await task.durable.step("double", double_later, number)


# -- plain calls ------------------------------------------------------------------------------------------------


def test_a_task_called_directly_is_the_plain_function_it_was(tmp_path: Path) -> None:
    app = Celery("plain", set_as_current=False)
    app.conf.durable_database_url = f"sqlite:///{tmp_path / 'journal.db'}"
    work = app.task(doubled, base=DurableTask, bind=True, name="doubled", shared=False)
    assert (work(4), work(number=4), calls) == (8, 8, [4, 4])
    assert Runtime.known(app) is None
    assert not list(tmp_path.iterdir())


def test_a_task_called_directly_in_a_body_is_a_part_of_it(lab: Lab) -> None:
    work = lab.task("work", doubled)

    def body(ctx: Any) -> list[int]:
        return [work(1), double(2), work(3)]

    lab.crash(lambda ctx: (body(ctx), ctx.step("die", lab.operation("die", None, Crash()))))
    assert lab.run(lambda ctx: (body(ctx), ctx.step("die", len, ""))[0]) == [2, 4, 6]
    assert calls == [1, 2, 3]
    assert lab.entries() == ["0 RESULT double", "1 RESULT double", "2 RESULT double", "3 RESULT die"]


def test_an_async_task_called_directly_is_a_coroutine_function_everywhere(lab: Lab) -> None:
    work = lab.task("work", doubled_later)
    assert asyncio.run(work(1)) == 2

    async def awaits(task: DurableTask) -> int:
        return await work(2) + await work(3)

    assert lab.apply(lab.task("awaits", awaits)) == 10
    assert lab.entries() == ["0 RESULT double", "1 RESULT double"]
    # A plain body gets the coroutine too, and runs it as it likes.
    assert lab.run(lambda ctx: asyncio.run(work(4)), id="two") == 8
    assert lab.entries("two") == ["0 RESULT double"]


# -- eager runs -------------------------------------------------------------------------------------------------


def test_an_eager_run_is_journaled_and_its_outcome_is_returned_again(lab: Lab) -> None:
    work = lab.task("work", doubled)
    first = work.apply((4,), task_id="one")
    again = work.apply((4,), task_id="one")
    assert (first.state, first.get(), again.state, again.get()) == (states.SUCCESS, 8, states.SUCCESS, 8)
    assert calls == [4]


def test_an_eager_failure_is_celerys(lab: Lab) -> None:
    def fail(task: DurableTask) -> None:
        calls.append("fail")
        raise ZeroDivisionError("no")

    work = lab.task("work", fail)
    result = work.apply(task_id="one")
    assert (result.state, repr(result.result)) == (states.FAILURE, "ZeroDivisionError('no')")
    with pytest.raises(ZeroDivisionError, match=r"^no$"):
        work.apply(task_id="one", throw=True)
    assert calls == ["fail"]


def test_with_task_always_eager_delay_runs_durably(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(task_always_eager=True, task_eager_propagates=True)
    work = lab.task("work", doubled)
    assert work.delay(4).get() == 8
    assert work.apply_async((5,), task_id="one").get() == 10
    assert work.apply_async((5,), task_id="one").get() == 10
    assert calls == [4, 5]

    def fail(task: DurableTask) -> None:
        raise ZeroDivisionError("no")

    failing = lab.task("failing", fail)
    with pytest.raises(ZeroDivisionError, match=r"^no$"):
        failing.delay()


@pytest.mark.parametrize("how", ["self.retry", "autoretry_for"])
def test_an_eager_retry_goes_on_where_the_attempt_stopped(lab: Lab, how: str) -> None:
    def body(task: DurableTask) -> int:
        value = double(4)
        calls.append(f"attempt {task.request.retries}")
        if task.request.retries < 2:
            error = OSError("not yet")
            raise task.retry(exc=error, countdown=0) if how == "self.retry" else error
        return value

    options = {} if how == "self.retry" else {"autoretry_for": (OSError,), "default_retry_delay": 0}
    assert lab.apply(lab.task("work", body, **options)) == 8
    assert calls == [4, "attempt 0", "attempt 1", "attempt 2"]


def test_an_eager_retry_ends_with_the_error_when_tries_run_out(lab: Lab) -> None:
    def body(task: DurableTask) -> None:
        calls.append(double(4))
        raise OSError("never")

    work = lab.task("work", body, autoretry_for=(OSError,), default_retry_delay=0, max_retries=1)
    with pytest.raises(OSError, match="never"):
        lab.apply(work)
    assert calls == [4, 8, 8]


def test_an_eager_canvas_is_one_execution_for_each_task(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(task_always_eager=True, task_store_eager_result=False)
    work = lab.task("work", doubled)
    total = lab.task("total", lambda task, numbers: task.durable.step("sum", sum, numbers))
    assert chain(work.s(1), work.s(), work.s()).apply_async().get() == 8
    assert group(work.s(n) for n in range(3)).apply_async().get() == [0, 2, 4]
    assert chord([work.s(1), work.s(2)])(total.s()).get() == 6
    assert sorted(row.task for row in lab.operations.find()) == ["total"] + ["work"] * 8


def test_an_eager_canvas_waits_where_it_is(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(task_always_eager=True)

    def add(task: DurableTask, *numbers: int) -> int:
        task.durable.sleep(0.01)
        return sum(numbers)

    async def add_later(task: DurableTask, *numbers: int) -> int:
        promise = task.durable.promise("numbers", timeout=30)
        resolve(promise.id, promise.token, sum(numbers), app=lab.app)
        await task.durable.sleep(0.01)
        return int(await task.durable.wait(promise))

    async def total(task: DurableTask, numbers: list[int]) -> int:
        first = await task.durable.select(late=task.durable.timer(0.01), never=task.durable.promise("never"))
        calls.append(first.key)
        return int(await task.durable.call(adding.s(*numbers)))

    adding, later, summing = (lab.task(one.__name__, one) for one in (add, add_later, total))
    link = lab.task("link", lambda task, number: calls.append(number))
    assert chain(adding.s(1, 2), later.s(3), adding.s(4)).delay().get() == 10
    assert group(adding.s(1), later.s(2)).delay().get() == [1, 2]
    assert chord([adding.s(1, 2), later.s(3, 4)], summing.s()).delay().get() == 10
    assert later.apply_async((5, 6), link=link.s()).get() == 11
    assert calls == ["late", 11]
    assert {row.state for row in lab.operations.find(limit=100)} == {State.COMPLETED}


@pytest.mark.parametrize("by", ["plain", "durable", "async", "chain"])
def test_an_eager_replacement_goes_on_in_the_body_that_asked_for_it(lab: Lab, by: str) -> None:
    add = lab.app.task(plus_one, name="plus_one", shared=False)
    durable, later = lab.task("durable", doubled), lab.task("later", doubled_later)
    replacements = {
        "plain": add.si(3),
        "durable": durable.si(3),
        "async": later.si(3),
        "chain": add.si(3) | durable.s(),
    }

    def body(task: DurableTask) -> Any:
        double(1)
        return task.replace(replacements[by])

    work = lab.task("work", body)
    expected = {"plain": 4, "durable": 6, "async": 6, "chain": 8}[by]
    assert [lab.apply(work), lab.apply(work)] == [expected, expected]
    assert calls.count(1) == 1


# -- eager runs within others -----------------------------------------------------------------------------------


def test_an_eager_run_within_a_body_is_an_execution_of_its_own(lab: Lab) -> None:
    work = lab.task("work", doubled)

    def body(ctx: Any) -> Any:
        session = current_session()
        before = double(1)
        inner = lab.apply(work, 2, id="inner")
        assert current_session() is session
        return [before, inner, double(3)]

    assert lab.run(body) == [2, 4, 6]
    assert lab.entries() == ["0 RESULT double", "1 RESULT double"]
    assert lab.entries("inner") == ["0 RESULT double"]


def test_an_eager_run_within_a_step_is_an_execution_of_its_own(make_lab: Callable[..., Lab]) -> None:
    """A step that sends a task, in an application whose tests run eagerly."""
    lab = make_lab(task_always_eager=True)
    work = lab.task("work", doubled)
    assert lab.run(lambda ctx: ctx.step("send", lambda: work.apply_async((2,), task_id="inner").id)) == "inner"
    assert lab.entries() == ["0 RESULT send"]
    assert lab.entries("inner") == ["0 RESULT double"]


def test_a_body_can_be_retried_after_an_eager_run_within_it(lab: Lab) -> None:
    inner = lab.task("inner", doubled_later)

    async def body(task: DurableTask) -> int:
        value = inner.apply((2,), task_id="inner").get(disable_sync_subtasks=False)
        calls.append(f"attempt {task.request.retries}")
        if not task.request.retries:
            raise OSError("not yet")
        return value

    assert lab.apply(lab.task("outer", body, autoretry_for=(OSError,), default_retry_delay=0)) == 4
    assert calls == [2, "attempt 0", "attempt 1"]


def test_an_async_task_runs_eagerly_for_a_coroutine(lab: Lab) -> None:
    work = lab.task("work", doubled_later, autoretry_for=(OSError,))

    async def main() -> Any:
        return work.apply((4,), task_id="one").get()

    assert asyncio.run(main()) == 8
    assert lab.entries() == ["0 RESULT double"]


def test_an_async_class_based_task_is_retried_by_autoretry(lab: Lab) -> None:
    class Work(DurableTask):
        name = "work"
        autoretry_for = (OSError,)
        default_retry_delay = 0

        async def run(self, number: int) -> int:
            value = await self.durable.step("double", double_later, number)
            if not self.request.retries:
                raise OSError("not yet")
            return value

    assert lab.apply(lab.app.register_task(Work()), 4) == 8
    assert calls == [4]


def test_an_async_body_calls_that_of_its_base(lab: Lab) -> None:
    class Base(DurableTask):
        abstract = True

        async def run(self, number: int) -> int:
            return await self.durable.step("double", double_later, number)

    class Work(Base):
        name = "work"

        async def run(self, number: int) -> int:
            return await super().run(number) + 1

    class Same(Base):
        name = "same"

    assert lab.apply(lab.app.register_task(Work()), 4, id="one") == 9
    assert lab.apply(lab.app.register_task(Same()), 4, id="two") == 8


def test_an_eager_call_within_another_body_is_not_run_without_its_journal(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have run before, as a part of that body."""
    lab = make_lab(durable_on_unavailable="degrade")
    work = lab.task("work", lambda task: lab.ledger.fire("work"))

    def away(request: object) -> None:
        raise JournalUnavailable("the database is away.")

    def body(ctx: Any) -> Any:
        monkeypatch.setattr(lab.runtime.ownership, "open", away)
        with pytest.raises(JournalUnavailable, match="the database is away"):
            ctx.step("inner", lambda: lab.apply(work, id="inner"))
        return ctx.execution_id

    assert lab.run(body) == "one"
    assert lab.ledger.count() == 0
