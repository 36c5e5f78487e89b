"""A body that asks for other steps than its journal holds: every way of it is noticed, and told in full."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import DurableContext, Effect, Intent, OnAmbiguous, StepDescriptor, step
from celery_durable.identity import fingerprint, short
from celery_durable.store.records import EntryKind, State
from tests.support.delivery import Delivery, Left
from tests.support.lab import Crash, Lab, everywhere, readable

Body = Callable[[Any], Any]

CURE = (
    "  The body changed, or does not ask for the same steps each time. Wrap what varies (time, random numbers, reads)\n"
    '  in a step, or keep old executions on the old path with self.durable.patched("...").'
)
SOURCE = "replay/test_divergence.py: "


def shown(name: str, effect: Effect = Effect.IDEMPOTENT, *args: Any) -> str:
    return f"{name} ({effect.value}), arguments {short(fingerprint(name, effect.value, args, {}))}"


def message(code: str, place: str, what: str, recorded: str, requested: str, source: str | None) -> str:
    lines = [
        f"[{code}] execution one diverged from its journal at position {place}: {what}.",
        f"  recorded   {recorded}",
        f"  requested  {requested}",
    ]
    if source is not None:
        lines.append(f"  source     {SOURCE}{source}")
    return "\n".join([*lines, CURE])


def nothing(*args: Any) -> None:
    """An operation."""


def steps(*names: str) -> Body:
    def body(ctx: Any) -> str:
        for name in names:
            ctx.step(name, nothing)
        return "done"

    return body


def branches(*lengths: int, then: tuple[str, ...] = ()) -> Body:
    """One branch of each length."""

    def body(ctx: Any) -> str:
        with ctx.parallel(max_workers=1) as scope:
            for number, length in enumerate(lengths):
                scope.submit(branch, ctx, number, length)
        return steps(*then)(ctx)

    def branch(ctx: Any, number: int, length: int) -> None:
        for index in range(length):
            ctx.step(f"{number}-{index}", nothing)

    return body


def one_argument(value: int) -> Body:
    return lambda ctx: ctx.step("a", nothing, value)


AT_LEAST_ONCE = StepDescriptor.at_least_once("a")
IN_BODY = "ctx.step(name, nothing)"
IN_BRANCH = 'ctx.step(f"{number}-{index}", nothing)'
IN_SCOPE = "with ctx.parallel(max_workers=1) as scope:"

#: What happened -> the body then, the body now, what is said.
CHANGES: dict[str, tuple[Body, Body, tuple[Any, ...]]] = {
    "renamed": (
        steps("a", "b"),
        steps("a", "x"),
        ("CD101", "1", "another step was recorded", shown("b"), shown("x"), IN_BODY),
    ),
    "reordered": (
        steps("a", "b"),
        steps("b", "a"),
        ("CD101", "0", "another step was recorded", shown("a"), shown("b"), IN_BODY),
    ),
    "inserted": (
        steps("a", "b"),
        steps("a", "x", "b"),
        ("CD101", "1", "another step was recorded", shown("b"), shown("x"), IN_BODY),
    ),
    "removed": (
        steps("a", "b", "c"),
        steps("a", "c"),
        ("CD101", "1", "another step was recorded", shown("b"), shown("c"), IN_BODY),
    ),
    "retyped": (
        one_argument(1),
        lambda ctx: ctx.step(AT_LEAST_ONCE, nothing, 1),
        (
            "CD102",
            "0",
            "the step's effect changed",
            shown("a", Effect.IDEMPOTENT, 1),
            shown("a", Effect.AT_LEAST_ONCE, 1),
            "lambda ctx: ctx.step(AT_LEAST_ONCE, nothing, 1),",
        ),
    ),
    "arguments": (
        one_argument(1),
        one_argument(2),
        (
            "CD104",
            "0",
            "the step's arguments changed",
            shown("a", Effect.IDEMPOTENT, 1),
            shown("a", Effect.IDEMPOTENT, 2),
            'return lambda ctx: ctx.step("a", nothing, value)',
        ),
    ),
    "scope-became-step": (
        branches(1),
        steps("a"),
        ("CD103", "0", "the kind of operation changed", "parallel (scope)", shown("a"), IN_BODY),
    ),
    "step-became-scope": (
        steps("a"),
        branches(1),
        ("CD103", "0", "the kind of operation changed", shown("a"), "parallel (scope)", IN_SCOPE),
    ),
    "early-return": (
        steps("a", "b", "c"),
        steps("a"),
        ("CD106", "1", "a recorded step was never reached", shown("b"), "the end of the body", None),
    ),
    "returned-at-once": (
        steps("a"),
        steps(),
        ("CD106", "0", "a recorded step was never reached", shown("a"), "the end of the body", None),
    ),
    "scope-removed": (
        branches(1),
        steps(),
        ("CD106", "0", "a recorded step was never reached", "parallel (scope)", "the end of the body", None),
    ),
    "branch-returns-early": (
        branches(2, 2),
        branches(2, 1),
        ("CD106", "0.1/1", "a recorded step was never reached", shown("1-1"), "the end of the branch", None),
    ),
    "branch-goes-on": (
        branches(1, 1),
        branches(1, 2),
        (
            "CD105",
            "0.1/1",
            "a step where the finished branch had none",
            "the end of the branch",
            shown("1-1"),
            IN_BRANCH,
        ),
    ),
    "branches-swapped": (
        branches(0, 1),
        branches(1, 0),
        (
            "CD105",
            "0.0/0",
            "a step where the finished branch had none",
            "the end of the branch",
            shown("0-0"),
            IN_BRANCH,
        ),
    ),
    "more-branches": (
        branches(1),
        branches(1, 1),
        ("CD107", "0", "the number of branches changed", "1 branches", "2 branches", IN_SCOPE),
    ),
    "fewer-branches": (
        branches(1, 1),
        branches(1),
        ("CD107", "0", "the number of branches changed", "2 branches", "1 branches", IN_SCOPE),
    ),
}


class Careless:
    """A context whose user swallows whatever steps raise, and goes on."""

    def __init__(self, context: DurableContext, kind: type[BaseException]) -> None:
        self.context = context
        self.kind = kind

    def step(self, *args: Any) -> Any:
        try:
            return self.context.step(*args)
        except self.kind:
            return None

    def parallel(self, **options: Any) -> Any:
        return self.context.parallel(**options)


#: Code and source line -> the source line in the careless context.
CARELESS = {
    ("CD103", IN_SCOPE): "return self.context.parallel(**options)",
    **{
        (said[0], said[-1]): "return self.context.step(*args)"
        for _, _, said in CHANGES.values()
        if said[-1] not in (None, IN_SCOPE)
    },
}


def interrupted(body: Body) -> Body:
    """Dies at the end."""

    def dies(ctx: DurableContext) -> None:
        body(ctx)
        raise Crash

    return dies


@pytest.mark.parametrize("catches", [None, Exception, BaseException], ids=["plain", "except-Exception", "bare-except"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed_and_told_in_full(
    make_lab: Callable[..., Lab], change: str, catches: type[BaseException] | None
) -> None:
    lab = make_lab(durable_on_divergence="park")
    then, now, said = CHANGES[change]
    lab.crash(interrupted(then))
    if catches is None:
        found = lab.parks(now)
        assert found == message(*said)
    else:
        found = lab.parks(lambda ctx: now(Careless(ctx, catches)))
        assert found == message(*said[:-1], CARELESS.get((said[0], said[-1]), said[-1]))
    assert lab.state() is State.QUARANTINED
    assert lab.parked == [("one", "quarantined", lab.reason())]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_body_starts_anew_in_the_next_generation(
    lab: Lab, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    then, now, said = CHANGES[change]
    lab.crash(interrupted(then))
    before = lab.entries()
    with caplog.at_level(logging.WARNING, "celery_durable.execution.session"):
        lab.run(now)
    told = f"{message(*said)}\n  The body starts again in generation 2."
    assert told in [readable(text) for text in caplog.messages]
    assert lab.state() is State.COMPLETED
    assert lab.execution().generation == 2
    # The aborted generation is kept, with the reason.
    assert set(lab.entries(generation=1)) == {*before, "#aborted/0 ABORTED aborted"}
    [abort] = [row for row in lab.rows(generation=1) if row.kind == EntryKind.ABORTED]
    assert readable(lab.runtime.codec.decode(abort.codec, abort.payload, "")) == message(*said)


def test_the_new_generation_calls_its_operations_again_but_only_once(lab: Lab) -> None:
    op = lab.operation("op")

    def body(*names: str) -> Body:
        def run(ctx: DurableContext) -> None:
            for name in names:
                ctx.step(name, op)

        return run

    lab.crash(interrupted(body("a", "b")))
    lab.crash(interrupted(body("a", "x")))
    assert lab.ledger.count("op") == 4
    lab.run(body("a", "x"))
    assert lab.ledger.count("op") == 4
    assert lab.entries() == ["0 RESULT a", "1 RESULT x"]


def test_a_divergence_within_an_unfinished_scope_is_noticed_at_the_end(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")

    def then(ctx: DurableContext) -> None:
        with ctx.parallel(max_workers=1) as scope:
            for name in ("left", "right"):
                scope.step(name, nothing)
            scope.step("crash", lab.operation("crash", None, Crash()))

    lab.crash(then)

    def now(ctx: DurableContext) -> None:
        with ctx.parallel() as scope:
            scope.step("left", nothing)

    assert lab.parks(now) == message(
        "CD106", "0.1/0", "a recorded step was never reached", shown("right"), "the end of the body", None
    )


@everywhere
def test_a_parked_divergence_goes_on_in_its_generation_with_the_old_body(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")
    op = lab.operation("op")

    def then(ctx: DurableContext) -> str:
        ctx.step("a", op)
        return "done"

    lab.crash(interrupted(then))
    lab.parks(steps("b"))
    lab.operations.resume("one")
    assert lab.run(then) == "done"
    assert lab.ledger.count("op") == 1
    assert lab.execution().generation == 1


@everywhere
def test_a_body_that_diverges_time_and_again_is_left_to_an_operator(
    lab: Lab, deliver: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits, and varies, would begin anew with each wake-up, for ever."""
    monkeypatch.setattr("celery_durable.replay.divergence._MOST_GENERATIONS", 3)
    runs = itertools.count()

    def varies(ctx: DurableContext) -> None:
        charge_once(ctx)
        ctx.step("look", str, next(runs))
        ctx.sleep(5)

    def charge_once(ctx: DurableContext) -> None:
        ctx.step(StepDescriptor.guarded("charge", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN), charge)

    def mended(ctx: DurableContext) -> str:
        charge_once(ctx)
        ctx.sleep(5)
        return "done"

    def wake() -> None:
        deliver.elapse(5)
        assert deliver.due() == ["one"]

    charge = lab.operation("charge")
    deliver.suspends(varies)
    for generation, then in ((4, varies), (7, mended)):
        for _ in range(2):
            wake()
            deliver.suspends(varies)
        wake()
        with pytest.raises(Left, match="quarantined"):
            deliver(varies)
        assert lab.execution().generation == generation
        reason = str(lab.reason())
        assert reason.startswith("its body has restarted 3 times, because it asks for other steps each time. ")
        assert "[CD104] execution one diverged from its journal at position 1" in reason
        lab.operations.resume("one")
        assert deliver.due() == ["one"]
        deliver.suspends(then)
    wake()
    assert deliver(mended) == "done"
    assert lab.ledger.count("charge") == 1


def test_the_source_line_is_the_users_also_for_decorated_steps(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_on_divergence="park")

    @step
    def fetch(number: int) -> None:
        """A step."""

    lab.crash(interrupted(lambda ctx: fetch(1)))
    said = lab.parks(lambda ctx: fetch(2))
    assert "source     replay/test_divergence.py: said = lab.parks(lambda ctx: fetch(2))" in said
