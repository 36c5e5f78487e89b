"""What is a step, what it is called by, and what its operation is told."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import (
    ContextClosed,
    DurableContext,
    Intent,
    OnAmbiguous,
    StepDescriptor,
    StepHandle,
    current_step,
    guarded,
    step,
)
from celery_durable.store.records import EntryKind
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab, everywhere

calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@step
def double(number: int) -> int:
    """Twice the number."""
    calls.append(number)
    return 2 * number


@step(name="mail", effect=guarded(Intent.COST_BEARING))
def send(text: str) -> None:
    calls.append(text)


class Gateway:
    """A client with a connection, which has no canonical form."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connection = object()

    @step(fingerprint=lambda self, cents: [self.name, cents])
    def quote(self, cents: int) -> str:
        calls.append(cents)
        return f"{self.name}: {cents}"


def twice(lab: Lab, body: Any) -> tuple[Any, Any]:
    """What the body returns at first, and what the next attempt does."""
    seen = []

    def attempt(ctx: DurableContext) -> Any:
        seen.append(body(ctx))
        if len(seen) == 1:
            raise Crash
        return None

    lab.crash(attempt)
    lab.run(attempt)
    return seen[0], seen[1]


@everywhere
def test_a_decorated_function_is_a_step_in_a_body_and_a_function_elsewhere(lab: Lab) -> None:
    assert twice(lab, lambda ctx: double(4)) == (8, 8)
    assert calls == [4]
    assert lab.entries() == ["0 RESULT double"]
    assert double(4) == 8
    assert double(number=4) == 8
    assert calls == [4, 4, 4]
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert repr(send) == "<step 'mail' (guarded)>"


def test_any_callable_is_a_step_inline(lab: Lab) -> None:
    assert twice(lab, lambda ctx: ctx.step("sorted", sorted, [1, 3], reverse=True)) == ([3, 1], [3, 1])
    assert lab.entries() == ["0 RESULT sorted"]


def test_a_step_takes_a_descriptor_in_place_of_its_name(lab: Lab) -> None:
    twice(lab, lambda ctx: ctx.step(charging(OnAmbiguous.RERUN), lab.operation("charge"), 5))
    assert lab.entries() == ["0 INTENT charge", "0 RESULT charge"]
    assert lab.ledger.count("charge") == 1


def test_a_decorated_function_under_another_name_is_one_step(lab: Lab) -> None:
    assert twice(lab, lambda ctx: ctx.step("quadruple", double, 2)) == (4, 4)
    assert lab.entries() == ["0 RESULT quadruple"]


def test_a_method_is_a_step_where_its_fingerprint_leaves_the_instance_out(lab: Lab) -> None:
    assert twice(lab, lambda ctx: Gateway("acme").quote(5)) == ("acme: 5", "acme: 5")
    assert calls == [5]
    assert Gateway("acme").quote(6) == "acme: 6"
    assert Gateway.quote.descriptor.name == "quote"


def test_a_method_with_another_fingerprint_is_another_call(lab: Lab) -> None:
    lab.crash(lambda ctx: (Gateway("acme").quote(5), ctx.step("stop", lab.operation("stop", None, Crash()))))
    lab.run(lambda ctx: Gateway("other").quote(5))
    assert lab.execution().generation == 2


def test_a_record_says_where_the_value_comes_from(lab: Lab) -> None:
    first, second = twice(lab, lambda ctx: [ctx.step_recorded("a", len, "xy"), ctx.step_recorded("a", len, "xy")][1])
    assert first == ("1", "a", first.key, 2, False, False, 1)
    assert second == first._replace(replayed=True)
    assert len(first.key) == 32


def test_the_body_gets_on_the_first_run_what_every_replay_gives_it(lab: Lab) -> None:
    shared = {"list": [1, 2], "tuple": (1, 2), 3: {4}}

    def body(ctx: DurableContext) -> Any:
        value = ctx.step("a", lambda: shared)
        assert value is not shared
        return value

    first, second = twice(lab, body)
    assert first == second == {"list": [1, 2], "tuple": (1, 2), 3: {4}}


# -- current_step -----------------------------------------------------------------------------------------------


def test_an_operation_knows_its_step(lab: Lab) -> None:
    handles: list[StepHandle] = []

    def body(ctx: DurableContext) -> Any:
        ctx.step("before", lambda: None)
        ctx.step("look", lambda: handles.append(current_step()))

    lab.run(body)
    [handle] = handles
    assert (handle.execution_id, handle.step_id, handle.name, handle.attempt) == ("one", "1", "look", 1)
    assert len(handle.idempotency_key) == 32


def test_there_is_no_current_step_in_the_body_nor_outside(lab: Lab) -> None:
    with pytest.raises(ContextClosed) as outside:
        current_step()
    assert str(outside.value) == (
        "[CD203] current_step() was called where no step's operation is running. Call it inside the function that is "
        "the step, not in the task's body; a @step function called outside a durable task is a plain function."
    )
    with pytest.raises(ContextClosed):
        lab.run(lambda ctx: current_step())


# -- idempotency keys -------------------------------------------------------------------------------------------


def keys_of(lab: Lab, body: Any, id: str) -> list[bytes]:  # noqa: A002
    """The keys that the operations of a body see, in order."""
    keys: list[bytes] = []
    lab.run(lambda ctx: body(ctx, lambda *args: keys.append(current_step().idempotency_key)), id=id)
    return keys


RERUN = charging(OnAmbiguous.RERUN)


def test_a_key_is_the_same_at_every_attempt(lab: Lab) -> None:
    keys: list[bytes] = []

    def charge() -> None:
        keys.append(current_step().idempotency_key)
        if len(keys) < 3:
            raise Crash

    for _ in range(2):
        lab.crash(lambda ctx: ctx.step(RERUN, charge))
    lab.run(lambda ctx: ctx.step(RERUN, charge))
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_each_occurrence_of_a_guarded_call_has_a_key_of_its_own(lab: Lab) -> None:
    keys = keys_of(lab, lambda ctx, op: [ctx.step(RERUN, op, 5) for _ in range(3)], "one")
    assert len(set(keys)) == 3


def test_a_key_depends_on_execution_name_and_arguments(lab: Lab) -> None:
    other = StepDescriptor.guarded("refund", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN)
    keys = keys_of(lab, lambda ctx, op: [ctx.step(RERUN, op, 5), ctx.step(RERUN, op, 6), ctx.step(other, op, 5)], "one")
    keys += keys_of(lab, lambda ctx, op: ctx.step(RERUN, op, 5), "two")
    assert len(set(keys)) == 4


def test_a_key_does_not_depend_on_the_position(lab: Lab, make_lab: Any) -> None:
    before = keys_of(lab, lambda ctx, op: ctx.step(RERUN, op, 5), "one")
    # Another journal with the same application and execution: a deploy that inserts a step.
    after = keys_of(make_lab(), lambda ctx, op: [ctx.step("new", len, ""), ctx.step(RERUN, op, 5)], "one")
    assert before == after


def test_equal_branches_have_different_keys(lab: Lab) -> None:
    def body(ctx: DurableContext, op: Any) -> None:
        for _ in range(2):
            with ctx.parallel() as branches:
                for _ in range(2):
                    branches.step(RERUN, op, 5)

    assert len(set(keys_of(lab, body, "one"))) == 4


def test_the_key_of_a_rerun_comes_from_its_record(lab: Lab) -> None:
    """It was minted with the intent; what a later version would mint does not matter."""
    keys: list[bytes] = []

    def charge() -> None:
        keys.append(current_step().idempotency_key)
        if len(keys) == 1:
            raise Crash

    lab.crash(lambda ctx: ctx.step(RERUN, charge))
    lab.change_row("charge", key=b"k" * 32)
    lab.run(lambda ctx: ctx.step(RERUN, charge))
    assert keys[1] == b"k" * 32
    assert {row.key for row in lab.rows() if row.kind == EntryKind.RESULT} == {b"k" * 32}
