"""What a look of recovery costs, on an empty journal and beside many that sleep; every worker looks once a second."""

from __future__ import annotations

from collections.abc import Sequence

from .bodies import Bodies
from .harness import Case, Note, stopwatch
from .scale import EMPTY

__all__ = ["REMARKS", "cases", "look_of", "references"]

REMARKS = (
    "Every other one sleeps until a time; and a tenth as many messages of the outbox wait for theirs. Nothing is due.",
)


def look_of(asleep: int) -> str:
    """Name of a figure."""
    return f"look of recovery, {asleep:,} asleep" if asleep else "look of recovery, nothing asleep"


def references(sizes: Sequence[int]) -> dict[str, str]:
    """Each look in that at the empty journal."""
    return {look_of(size): look_of(EMPTY) for size in sizes}


def cases(bodies: Bodies, size: int, *, quick: bool) -> list[Case]:
    """On one journal."""
    some = 3 if quick else 50
    recovery = bodies.runtime.recovery

    def looking(note: Note) -> None:
        for _ in range(some):
            with stopwatch(note, look_of(size)):
                assert not recovery.claim(100).due

    return [Case({look_of(size): "s"}, looking)]
