"""A parent and its children: started once, heard of when they end, and the same verdict on every replay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery, chain, group
from celery.exceptions import Ignore, TaskRevokedError

from celery_durable import (
    ChildCancelled,
    ChildFailed,
    ChildTimeout,
    ConfigurationError,
    DurableContext,
    FingerprintError,
    State,
    StepDescriptor,
)
from celery_durable.children.reports import report
from celery_durable.execution.cancelling import cancel
from celery_durable.messaging.envelope import CHILD_HEADER
from celery_durable.store.children import kept_by
from celery_durable.store.records import PromiseState, StoredPayload
from celery_durable.store.retention import Looked, RetentionStore
from celery_durable.store.tables import executions, outbox, promises
from tests.support.delivery import Delivery, Left, hand_over
from tests.support.lab import Crash, Lab, everywhere, quiet_heartbeat


class Family:
    """A lab with tasks that can be children."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.kid = lab.task("kid", lambda task, *args: task.durable.step("work", lab.operation("work", 5), *args))
        self.failing = lab.task("failing", lab.operation("failed", None, *[ValueError("no")] * 9))

        def plain(number: Any) -> Any:
            return number

        self.plain = lab.app.task(plain, name="plain", shared=False)
        # The broker is in memory, and everybody's.
        self.messages()

    def messages(self) -> list[tuple[str, str]]:
        """Task and id of what was published since the last look."""
        found = []
        with self.lab.app.connection_for_read() as connection:
            queue = connection.SimpleQueue("celery")
            while queue.qsize():
                message = queue.get_nowait()
                message.ack()
                found.append((message.headers["task"], message.headers["id"]))
        return [one for one in found if one[0] != "job"]

    def again(self, deliver: Delivery) -> None:
        """Let the parent have another look, whatever it waits for."""
        self.lab.wake()
        assert "one" in deliver.due()

    def started(self) -> list[str]:
        """Ids of the children that were started since the last look."""
        return [task_id for _, task_id in self.messages()]

    def run(self, task: Any, child: str) -> None:
        """Deliver a durable child's message."""
        header = {CHILD_HEADER: kept_by(child)}
        with contextlib.suppress(Ignore, ValueError):
            hand_over(task, child, headers=header, **header)

    def settle(self, child: str, value: Any = None, error: Exception | None = None) -> None:
        """The end of a plain child."""
        codec = self.lab.runtime.codec
        if error is None:
            state, payload = PromiseState.RESOLVED, codec.encode({"value": value}, "a value")
        else:
            state, payload = PromiseState.REJECTED, codec.encode_error(error, "an error")
        report(self.lab.app, kept_by(child) or "", state, StoredPayload(*payload))


@pytest.fixture
def family(lab: Lab) -> Family:
    return Family(lab)


# -- one child --------------------------------------------------------------------------------------------------


@everywhere
def test_a_parent_leaves_the_worker_and_goes_on_with_what_its_child_returned(
    lab: Lab, deliver: Delivery, family: Family
) -> None:
    def body(ctx: DurableContext) -> Any:
        value = ctx.call(family.kid.s(1))
        return ctx.step("after", lab.operation("after", value))

    deliver.suspends(body)
    assert lab.entries() == ["0 CALL kid"]
    [child] = family.started()
    assert (lab.state("one"), lab.state(child)) == (State.SUSPENDED, State.PENDING)
    assert deliver.due() == []
    family.run(family.kid, child)
    assert lab.state(child) is State.COMPLETED
    # Its end has sent the parent's message.
    assert lab.execution().sends == 1
    assert deliver(body) == 5
    assert lab.entries() == ["0 CALL kid", "0 RESULT kid", "1 RESULT after"]
    assert (lab.ledger.count("work"), lab.ledger.count("after")) == (1, 1)
    assert family.started() == []


@everywhere
def test_a_child_is_recorded_with_the_entry_that_names_it_or_not_at_all(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(durable_flush_interval=20)  # nobody else commits
    deliver, family = Delivery(lab), Family(lab)

    def body(ctx: DurableContext) -> Any:
        return ctx.gather(family.kid.s(1), family.plain.s(2))

    def die(*_: Any) -> None:
        raise Crash

    monkeypatch.setattr("celery_durable.store.journal.insert_children", die)
    with pytest.raises(Crash):
        deliver(body)
    monkeypatch.undo()
    quiet_heartbeat(monkeypatch)
    assert _count(lab, promises) == _count(lab, outbox) == 0
    assert [row.id for row in lab.operations.find()] == ["one"]
    lab.lose_lease()

    # Recorded, and the process dies before anything is sent.
    monkeypatch.setattr("celery_durable.children.starting.send_committed", die)
    with pytest.raises(Left, match="pending"):
        deliver(body)
    monkeypatch.undo()
    assert family.messages() == []
    assert _count(lab, outbox) == 1
    [child] = [row.id for row in lab.operations.find() if row.id != "one"]
    deliver.elapse(3600)
    assert child in deliver.due()


def _count(lab: Lab, table: sa.Table) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    return int(lab.runtime.database.read(lambda connection: connection.execute(query).scalar_one()))


@everywhere
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "plain"])
def test_the_error_of_a_child_is_its_parents_and_the_same_on_every_replay(
    lab: Lab, deliver: Delivery, family: Family, durable: bool
) -> None:
    seen: list[ChildFailed] = []

    def body(ctx: DurableContext) -> str:
        try:
            ctx.call((family.failing if durable else family.plain).s(1))
        except ChildFailed as error:
            seen.append(error)
        ctx.step("after", lab.operation("after"))
        ctx.sleep(60)
        return "handled"

    deliver.suspends(body)
    [child] = family.started()
    if durable:
        family.run(family.failing, child)
    else:
        family.settle(child, error=ValueError("no"))
    deliver.suspends(body)
    deliver.elapse(60)
    assert deliver.resumes(body) == "handled"
    assert [str(error) for error in seen] == [str(seen[0])] * 2
    for error in seen:
        assert (type(error.error), str(error.error), error.child_id, error.reason) == (
            ValueError,
            "no",
            child,
            "ValueError: no",
        )
    assert isinstance(seen[0].__cause__, ValueError)


@everywhere
def test_who_ends_a_child_from_outside_tells_its_parent(lab: Lab, deliver: Delivery, family: Family) -> None:
    caught: list[ChildFailed] = []

    def body(ctx: DurableContext, number: int) -> None:
        try:
            ctx.call(family.kid.s(number))
        except ChildFailed as error:
            caught.append(error)

    deliver.suspends(body, 1, id="cancelled")
    deliver.suspends(body, 2, id="failed")
    first, second = family.started()
    cancel(lab.app, first, "an operator said so")
    outcome = StoredPayload(*lab.runtime.codec.encode_error(TimeoutError("too long"), "an error"))
    assert lab.operations.fail(second, outcome, "the hard time limit")
    assert deliver.due() == ["cancelled", "failed"]
    deliver(body, 1, id="cancelled")
    deliver(body, 2, id="failed")
    assert [type(error) for error in caught] == [ChildCancelled, ChildFailed]
    assert caught[0].reason == "an operator said so"
    assert isinstance(caught[1].error, TimeoutError)


@everywhere
def test_who_waits_for_something_that_is_undone_first_hears_why_it_was_cancelled(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(result_backend="cache+memory://")
    deliver, family = Delivery(lab), Family(lab)
    book = StepDescriptor.idempotent("book", compensate=lab.operation("undo"))

    def books(task: Any) -> None:
        task.durable.step(book, lab.operation("book"))
        task.durable.sleep(60)

    child, caught = lab.task("books", books), []

    def body(ctx: DurableContext) -> None:
        try:
            ctx.call(child.s())
        except ChildCancelled as error:
            caught.append(error)

    deliver.suspends(body)
    [known] = family.started()
    family.run(child, known)
    assert lab.state(known) is State.SUSPENDED
    cancel(lab.app, known, "the customer left")
    assert (lab.state(known), lab.ledger.count("undo")) == (State.PENDING, 0)
    family.run(child, known)
    assert (lab.state(known), lab.ledger.count("undo")) == (State.CANCELLED, 1)
    with pytest.raises(TaskRevokedError, match="the customer left"):
        lab.app.AsyncResult(known).get(timeout=1)
    deliver(body)
    assert [error.reason for error in caught] == ["the customer left"]


@everywhere
def test_who_cancels_a_parent_that_is_undone_says_why_to_its_children(
    lab: Lab, deliver: Delivery, family: Family
) -> None:
    book = StepDescriptor.idempotent("book", compensate=lab.operation("undo"))

    def body(ctx: DurableContext) -> None:
        ctx.step(book, lab.operation("book"))
        ctx.call(family.kid.s(1))

    # Recorded, and cancelled at once: whoever cancels has not seen the child yet.
    def cancels(point: str, *_: Any) -> None:
        if point == "child.before_record":
            lab.operations.cancel("one", "the customer left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_durable.children.call.reached", cancels)
        deliver.suspends(body)
    [child] = family.started()
    assert lab.state(child) is State.PENDING
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="cancelled"):
        deliver(body)
    assert (lab.state(child), lab.ledger.count("undo")) == (State.CANCELLED, 1)
    assert lab.reason(child) == "its parent one was cancelled: the customer left"


@everywhere
def test_a_child_that_takes_too_long_is_cancelled(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> str:
        try:
            return str(ctx.call(family.kid.s(1), timeout=60))
        except ChildTimeout:
            return "late"

    deliver.suspends(body)
    [child] = family.started()
    deliver.elapse(61)
    assert "one" in deliver.due()
    assert deliver(body) == "late"
    assert lab.state(child) is State.CANCELLED


@everywhere
def test_a_child_may_be_pruned_before_its_parent_has_looked(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.call(family.kid.s(1))

    deliver.suspends(body)
    [child] = family.started()
    family.run(family.kid, child)
    lab.runtime.keeper.dispatched(lab.execution(child).pk)
    lab.runtime.keeper.mark()
    row = lab.execution(child)
    looked = Looked(row.pk, True, row.state, row.epoch, row.generation, row.steps, True, 0, None)
    assert RetentionStore(lab.runtime.database, namespace="lab").prune([looked]) == [row.pk]
    assert deliver(body) == 5


@everywhere
def test_the_children_of_a_parent_that_is_cancelled_are_cancelled_with_theirs(
    lab: Lab, deliver: Delivery, family: Family
) -> None:
    def body(ctx: DurableContext, depth: int) -> Any:
        if depth:
            return ctx.call(lab.job.s(depth - 1))
        return ctx.call(family.kid.s(1))

    deliver.suspends(body, 1)
    [child] = [row.id for row in lab.operations.find() if row.id != "one"]
    deliver.suspends(body, 0, id=child)
    assert cancel(lab.app, "one", "enough").problem is None
    assert {row.state for row in lab.operations.find()} == {State.CANCELLED}
    assert len(lab.operations.find()) == 3


@everywhere
def test_a_parent_that_is_undone_starts_no_children(lab: Lab, deliver: Delivery, family: Family) -> None:
    book = StepDescriptor.idempotent("book", compensate=lab.operation("undo"))

    def body(ctx: DurableContext) -> Any:
        ctx.step(book, lab.operation("book"))
        if not dies:
            return ctx.call(family.kid.s(1))
        raise dies.pop()

    dies = [Crash()]
    with pytest.raises(Left, match="pending"):
        deliver(body)
    cancel(lab.app, "one", "enough")
    assert deliver.due() == ["one"]
    with pytest.raises(Left, match="cancelled"):
        deliver(body)
    assert (lab.ledger.count("undo"), family.started(), len(lab.operations.find())) == (1, [], 1)


def test_a_child_that_failed_is_not_cured_by_trying_the_parent_again(lab: Lab) -> None:
    def failing() -> None:
        lab.ledger.fire("child")
        raise ValueError("no")

    child = lab.app.task(failing, name="declines", shared=False)
    parent = lab.task(
        "parent",
        lambda task: (lab.ledger.fire("parent"), task.durable.call(child.s())),
        autoretry_for=(Exception,),
        default_retry_delay=0,
    )
    with pytest.raises(ChildFailed):
        lab.apply(parent)
    assert (lab.ledger.count("parent"), lab.ledger.count("child")) == (1, 1)


# -- several ----------------------------------------------------------------------------------------------------

FAILED, GOOD, NEVER = "failed", "good", "never"


@everywhere
@pytest.mark.parametrize(
    ("options", "ends", "expected"),
    [
        ({}, [GOOD, GOOD, GOOD], [0, 1, 2]),
        ({}, [GOOD, FAILED, NEVER], ChildFailed),
        ({"tolerate": 1}, [FAILED, GOOD, GOOD], [ChildFailed, 1, 2]),
        ({"tolerate": 1}, [FAILED, FAILED, NEVER], ChildFailed),
        ({"until": "first"}, [NEVER, GOOD, NEVER], [ChildCancelled, 1, ChildCancelled]),
        ({"until": "first"}, [FAILED, NEVER, NEVER], ChildFailed),
        ({"until": "first", "tolerate": 2}, [FAILED, GOOD, NEVER], [ChildFailed, 1, ChildCancelled]),
        ({"until": 2}, [GOOD, NEVER, GOOD], [0, ChildCancelled, 2]),
        ({"until": 2, "tolerate": 2}, [FAILED, FAILED, NEVER], ChildFailed),
        ({"concurrency": 1}, [GOOD, GOOD, GOOD], [0, 1, 2]),
    ],
    ids=str,
)
def test_a_verdict_falls_as_soon_as_it_can_and_stands(
    lab: Lab, deliver: Delivery, family: Family, options: Any, ends: list[str], expected: Any
) -> None:
    verdicts: list[Any] = []

    def body(ctx: DurableContext) -> None:
        try:
            verdicts.append(ctx.gather(*(family.kid.s(number) for number in range(3)), **options))
        except ChildFailed as error:
            verdicts.append(error)
        ctx.sleep(60)

    deliver.suspends(body)
    children = family.started()
    for number, end in enumerate(ends):
        if end is NEVER:
            continue
        # One after the other, to the millisecond.
        deliver.elapse(1)
        if options.get("concurrency"):
            assert len(children) == number + 1
        family.settle(children[number], number, ValueError("no") if end is FAILED else None)
        if not verdicts and lab.execution().sends:
            deliver.suspends(body)
            children += [child for child in family.started() if child not in children]
    assert len(verdicts) == 1
    deliver.elapse(60)
    family.again(deliver)
    deliver(body)

    def described(verdict: Any) -> Any:
        if isinstance(verdict, list):
            return [type(one) if isinstance(one, ChildFailed) else one for one in verdict]
        return type(verdict)

    assert [described(verdict) for verdict in verdicts] == [expected, expected]
    states = [lab.state(child) for child in children]
    # Who is not needed was cancelled; the others have ended by what the test says.
    assert [state is State.CANCELLED for state in states] == [end is NEVER for end in ends[: len(states)]]


@everywhere
def test_who_came_first_was_first_though_the_parent_sees_both_only_now(
    lab: Lab, deliver: Delivery, family: Family
) -> None:
    def body(ctx: DurableContext) -> Any:
        return [str(one) for one in ctx.gather(family.kid.s(1), family.kid.s(2), until="first")]

    deliver.suspends(body)
    one, two = family.started()
    family.settle(two, "first")
    deliver.elapse(1)
    family.settle(one, "second")
    first, second = deliver(body)
    assert second == "first"
    assert "was not needed any more" in first


@everywhere
def test_no_more_than_so_many_are_under_way(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.gather(*(family.kid.s(number) for number in range(20)), concurrency=8)

    deliver.suspends(body)
    under_way = family.started()
    assert len(under_way) == 8
    started = len(under_way)
    while started < 20 or under_way:
        assert len(under_way) <= 8
        family.settle(under_way.pop(0), 1)
        if lab.execution().sends:
            try:
                assert deliver(body) == [1] * 20
                break
            except Left:
                fresh = family.started()
                started += len(fresh)
                under_way += fresh
    assert started == 20
    # When a quarter of them has ended, the next ones are started.
    assert lab.entries().count(lab.entries()[0]) <= 8


@everywhere
def test_a_failure_while_the_parent_is_on_its_way_out_lets_it_go_on_at_once(
    lab: Lab, deliver: Delivery, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.gather(*(family.kid.s(number) for number in range(3)))

    def fail(point: str, *_: Any) -> None:
        if point == "wait.before_suspend":
            family.settle(family.started()[1], error=ValueError("no"))

    monkeypatch.setattr("celery_durable.execution.ending.reached", fail)
    deliver.suspends(body)
    monkeypatch.undo()
    assert deliver.due() == ["one"]
    with pytest.raises(ChildFailed):
        deliver(body)


@everywhere
def test_a_group_gives_the_list_of_its_results(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.call(group(family.kid.s(1), family.plain.s(2)))

    deliver.suspends(body)
    first, second = family.started()
    family.settle(second, {"a": (1, 2)})
    assert deliver.due() == []
    family.run(family.kid, first)
    assert deliver(body) == [5, {"a": (1, 2)}]


@everywhere
def test_children_in_branches_and_in_coroutines(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.map(lambda number: ctx.call(family.plain.s(number)), [1, 2, 3])

    deliver.suspends(body)
    children = family.started()
    assert len(set(children)) == 3
    for child in children:
        family.settle(child, "done")
        try:
            assert deliver(body) == ["done"] * 3
        except Left:
            continue
    assert lab.state() is State.COMPLETED
    assert family.started() == []


# -- a body that changes ----------------------------------------------------------------------------------------


@everywhere
def test_after_a_divergence_the_same_child_is_not_started_again(lab: Lab, deliver: Delivery, family: Family) -> None:
    before = ["old"]

    def body(ctx: DurableContext) -> Any:
        ctx.step(before[0], lab.operation(before[0]))
        return ctx.gather(family.plain.s(1), family.kid.s(2))

    deliver.suspends(body)
    plain, kid = family.started()
    family.settle(plain, "was there")
    before[0] = "new"
    family.again(deliver)
    deliver.suspends(body)
    assert lab.execution().generation == 2
    assert family.started() == []
    family.run(family.kid, kid)
    assert deliver(body) == ["was there", 5]
    assert lab.ledger.count("work") == 1


@everywhere
def test_a_child_whose_arguments_drift_is_left_to_an_operator(lab: Lab, deliver: Delivery, family: Family) -> None:
    said = ["old", 1]

    def body(ctx: DurableContext) -> Any:
        ctx.step(str(said[0]), lab.operation("before"))
        return ctx.call(family.plain.s(said[1]))

    deliver.suspends(body)
    [child] = family.started()
    said[:] = ["new", 2]
    family.again(deliver)
    with pytest.raises(Left, match="ambiguous"):
        deliver(body)
    assert "has started this child with other arguments" in lab.reason()
    assert family.started() == []
    said[1] = 1
    lab.operations.resume("one")
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    family.settle(child, "the first one")
    assert deliver(body) == "the first one"


def test_another_child_in_its_place_is_a_divergence(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")
    deliver, family = Delivery(lab), Family(lab)
    children = [family.plain.s(1)]

    def body(ctx: DurableContext) -> Any:
        return ctx.call(children[0])

    deliver.suspends(body)
    for other in (family.kid.s(1), family.plain.s(2)):
        children[0] = other
        family.again(deliver)
        with pytest.raises(Left, match="quarantined"):
            deliver(body)
        lab.operations.resume("one")
        assert deliver.due() == ["one"]
        children[0] = family.plain.s(1)
        deliver.suspends(body)
    family.again(deliver)
    children[0] = family.plain.s(1).set(queue="another", countdown=5)
    with pytest.raises(Left, match="suspended"):
        deliver(body)


# -- what cannot be called --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda ctx, family: ctx.call(family.kid), "takes signatures, not"),
        (lambda ctx, family: ctx.call("kid"), "takes signatures, not 'kid'"),
        (lambda ctx, family: ctx.call(group()), "empty group"),
        (lambda ctx, family: ctx.call(family.kid.s(1), timeout=0), "timeout"),
        (lambda ctx, family: ctx.call(family.kid.s(1), name=""), "a child's name"),
        (lambda ctx, family: ctx.call(family.kid.s(1).set(durable_id="mine")), "has a durable_id"),
        (lambda ctx, family: ctx.call(Celery("other", set_as_current=False).signature("kid")), "another Celery"),
        (lambda ctx, family: ctx.gather(group(family.kid.s(1))), "takes no groups"),
        (lambda ctx, family: ctx.gather(family.kid.s(1), until=2), "at most 1"),
        (lambda ctx, family: ctx.gather(family.kid.s(1), until="some"), "'all', 'first'"),
        (lambda ctx, family: ctx.gather(family.kid.s(1), concurrency=0), "1 or more"),
        (lambda ctx, family: ctx.gather(family.kid.s(1), tolerate=-1), "0 or more"),
        (lambda ctx, family: ctx.map(print, [1], concurrency=0), "1 or more"),
    ],
)
def test_what_cannot_be_called_is_refused_with_a_reason(
    lab: Lab, deliver: Delivery, family: Family, call: Any, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        deliver(lambda ctx: call(ctx, family))
    assert family.started() == []


def test_an_argument_without_canonical_form_is_refused(deliver: Delivery, family: Family) -> None:
    with pytest.raises(FingerprintError, match="the call 'plain'"):
        deliver(lambda ctx: ctx.call(family.plain.s(object())))


def test_nothing_to_wait_for_is_nothing(deliver: Delivery) -> None:
    assert deliver(lambda ctx: (ctx.gather(), ctx.map(print, []))) == ([], [])


# -- without a worker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "direct"])
def test_children_run_where_they_are_called(lab: Lab, family: Family, eager: bool) -> None:
    def body(task: Any) -> Any:
        ctx = task.durable
        slow = ctx.gather(family.plain.s(1), family.plain.s(2), until="first")
        with pytest.raises(ChildFailed, match="ValueError: no"):
            ctx.call(family.failing.s())
        return [
            ctx.call(family.plain.s(None)),
            ctx.call(chain(family.plain.s(1), family.plain.s())),
            ctx.call(group(family.plain.s(3), family.kid.s(1))),
            [slow[0], type(slow[1]).__name__],
            ctx.map(family.plain.run, [4, 5]),
        ]

    parent = lab.task("parent", body)
    value = lab.apply(parent) if eager else parent()
    assert value == [None, 1, [3, 5], [1, "ChildCancelled"], [4, 5]]
    assert lab.ledger.count("work") == 1
    assert family.messages() == []


def test_an_eager_parent_that_was_killed_finds_what_its_children_returned(lab: Lab, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        value = ctx.call(family.kid.s(1))
        ctx.step("dies", dies)
        return value

    dies = lab.operation("dies", None, Crash())
    lab.crash(body)
    assert lab.run(body) == 5
    assert lab.ledger.count("work") == 1


def test_the_first_error_of_many_items_is_raised_after_all_have_ended(lab: Lab) -> None:
    def one(ctx: DurableContext, number: int) -> int:
        return ctx.step("one", lab.operation("one", number, ValueError(str(number)) if number in (2, 5) else None))

    with pytest.raises(ValueError, match="2"):
        lab.run(lambda ctx: ctx.map(lambda number: one(ctx, number), range(8), concurrency=2))
    assert lab.ledger.count("one") == 8


def test_a_thousand_items_in_branches(lab: Lab) -> None:
    operation = lab.operation("one", 1)

    def body(ctx: DurableContext) -> int:
        return sum(ctx.map(lambda number: ctx.step("one", operation, number), range(1000)))

    assert lab.run(body) == 1000
    assert lab.ledger.count("one") == 1000


def test_items_in_coroutines(lab: Lab) -> None:
    running, most = [], []

    async def operation(number: int) -> int:
        running.append(number)
        most.append(len(running))
        await asyncio.sleep(0.001)
        running.remove(number)
        return number

    async def body(task: Any) -> Any:
        async def one(number: int) -> Any:
            return await task.durable.step("one", operation, number)

        return await task.durable.map(one, range(20), concurrency=3)

    assert lab.apply(lab.task("parent", body)) == list(range(20))
    assert max(most) == 3


@everywhere
def test_the_message_of_a_plain_child_is_forgotten_when_it_is_sent(lab: Lab, deliver: Delivery, family: Family) -> None:
    deliver.suspends(lambda ctx: ctx.call(chain(family.plain.s(1), family.plain.s())))
    assert len(family.started()) == 1
    assert (_count(lab, executions), _count(lab, outbox), _count(lab, promises)) == (1, 0, 1)
