"""What a step costs on its first run, by effect, by size of its result, and by the length of its body."""

from __future__ import annotations

from typing import Any

from celery_durable import DurableContext

from . import ingredients
from .bodies import GUARDED, Bodies, double
from .floor import Floor, bare, python
from .harness import Case, Note, stopwatch

__all__ = ["FIVE_GUARDED", "GUARDED_STEP", "cases", "inside", "whole"]

GUARDED_STEP = "guarded step"
FIVE_GUARDED = "5 guarded steps, whole execution"
#: The commits of the latter, said by the driver alone: a disk's bad moments are in both.
ELEVEN = "11 bare commits, as many as 5 guarded steps"
PARALLEL = "step in a parallel scope of 8"


def whole(steps: int) -> str:
    """Name of the figure: everything that an execution costs, shared by its steps."""
    return f"step of {steps:,}, whole execution"


def inside(steps: int) -> str:
    """Name of the figure: what the body waits for."""
    return f"step of {steps:,}, in the body"


def plain(steps: int) -> Any:
    """A body of idempotent steps."""

    def body(context: DurableContext) -> None:
        for number in range(steps):
            context.step("double", double, number)

    return body


def guarded(steps: int) -> Any:
    """A body of guarded steps."""

    def body(context: DurableContext) -> None:
        for number in range(steps):
            context.step(GUARDED, double, number)

    return body


def branches(context: DurableContext) -> None:
    """Eight steps at a time."""
    with context.parallel() as scope:
        for number in range(8):
            scope.step("double", double, number)


def _of_length(bodies: Bodies, steps: int, executions: int) -> Case:
    body = plain(steps)

    def turn(note: Note) -> None:
        for _ in range(executions):
            all_of_it, in_body = bodies.run(body)
            note(whole(steps), all_of_it / steps)
            note(inside(steps), in_body / steps)

    return Case({whole(steps): "s", inside(steps): "s"}, turn)


def _guarded(bodies: Bodies, executions: int) -> Case:
    body = guarded(5)

    def turn(note: Note) -> None:
        for _ in range(executions):
            all_of_it, in_body = bodies.run(body)
            note(GUARDED_STEP, in_body / 5)
            note(FIVE_GUARDED, all_of_it)

    return Case({GUARDED_STEP: "s", FIVE_GUARDED: "s"}, turn)


def _eleven(ground: Floor, turns: int) -> Case:
    def turn(note: Note) -> None:
        for _ in range(turns):
            with stopwatch(note, ELEVEN):
                for _ in range(11):
                    ground.commit_one()

    return Case({ELEVEN: "s"}, turn)


def _parallel(bodies: Bodies, executions: int) -> Case:
    def turn(note: Note) -> None:
        for _ in range(executions):
            note(PARALLEL, bodies.run(branches)[0] / 8)

    return Case({PARALLEL: "s"}, turn)


def _with_result(bodies: Bodies, size: str, result: str, executions: int) -> Case:
    name = f"step of 10 with a result of {size}, whole execution"

    def answer(number: int) -> str:
        return result

    def body(context: DurableContext) -> None:
        for number in range(10):
            context.step("answer", answer, number)

    def turn(note: Note) -> None:
        for _ in range(executions):
            note(name, bodies.run(body)[0] / 10)

    return Case({name: "s"}, turn)


def cases(bodies: Bodies, ground: Floor, *, quick: bool) -> list[Case]:
    """The suite; the floor takes its turns among the steps."""
    some = 2 if quick else 30
    lengths = {1: some, 10: some, 100: max(2, some // 3), 1000: 1 if quick else 3}
    return [
        bare(ground, 20 if quick else 200),
        python(),
        *(_of_length(bodies, steps, executions) for steps, executions in lengths.items()),
        # Enough of them for a 99th percentile.
        _guarded(bodies, 5 if quick else 100),
        _eleven(ground, 5 if quick else 100),
        _parallel(bodies, some),
        _with_result(bodies, "1 KB", "x" * 1000, some),
        _with_result(bodies, "100 KB", "x" * 100_000, 1 if quick else 5),
        *ingredients.cases(bodies, quick=quick),
    ]
