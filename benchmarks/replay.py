"""What it costs to come back: time and memory of a resume, beside the first run of the same body."""

from __future__ import annotations

import tracemalloc

from celery_durable import DurableContext

from .bodies import Bodies
from .harness import Case, Figure, Note
from .steps import plain

__all__ = ["cases", "first_run", "memory", "memory_of", "replayed"]


def first_run(steps: int) -> str:
    """Name of the figure: a step of the first run, inside the body."""
    return f"first run of {steps:,} steps, per step"


def replayed(steps: int) -> str:
    """Name of the figure: a step of a resume, inside the body."""
    return f"replay of {steps:,} steps, per step"


def _resume(bodies: Bodies, steps: int) -> Case:
    first, again, whole = first_run(steps), replayed(steps), f"resume of {steps:,} steps, opened to ended"
    body = plain(steps)

    def turn(note: Note) -> None:
        execution = bodies.new_id()
        note(first, bodies.interrupt(body, execution)[1] / steps)
        note(again, bodies.interrupt(body, execution)[1] / steps)
        all_of_it, in_body = bodies.run(body, execution)
        note(again, in_body / steps)
        note(whole, all_of_it)

    return Case({first: "s", again: "s", whole: "s"}, turn)


def cases(bodies: Bodies, *, quick: bool) -> list[Case]:
    """The suite."""
    return [_resume(bodies, steps) for steps in lengths(quick)]


def lengths(quick: bool) -> tuple[int, ...]:
    """How many steps are replayed."""
    return (100, 500) if quick else (100, 5_000, 10_000)


def memory_of(steps: int) -> str:
    """Name of the figure: the peak of what Python allocated during a resume."""
    return f"replay of {steps:,} steps, peak memory"


def memory(bodies: Bodies, *, quick: bool) -> dict[str, Figure]:
    """The peaks of first run and replay, in a pass of its own, for tracing slows both down."""
    figures = {}
    for steps in lengths(quick):
        execution = bodies.new_id()
        first, again = f"first run of {steps:,} steps, peak memory", memory_of(steps)
        figures[first] = Figure(first, "bytes", [[_peak(bodies, steps, execution)]])
        # What a process does once, in any of its threads, belongs to no resume: the median leaves it out.
        figures[again] = Figure(again, "bytes", [[_peak(bodies, steps, execution)] for _ in range(1 if quick else 3)])
    return figures


def _peak(bodies: Bodies, steps: int, execution: str) -> float:
    peak = 0
    body = plain(steps)

    def watched(context: DurableContext) -> None:
        nonlocal peak
        tracemalloc.start()
        try:
            body(context)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    bodies.interrupt(watched, execution)
    return float(peak)
