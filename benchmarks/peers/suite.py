"""The same steps and the same replay by each engine, in turns."""

from __future__ import annotations

from collections.abc import Sequence

from ..bodies import Bodies
from ..floor import Floor, bare
from ..harness import Case, Figure, Note
from ..steps import guarded, plain
from .peer import Program

__all__ = ["OURS", "OURS_GUARDED", "REMARKS", "cases", "references", "replayed", "step"]

OURS = "celery_durable"
OURS_GUARDED = "celery_durable, guarded step"

REMARKS = [
    "Peers: seconds inside the body, divided by the steps, so that no queue's poll counts.",
    f"{OURS}, step: everything from opening to the committed end, for results are committed while the body goes on.",
    f"{OURS}, guarded and replayed steps: inside the body. A replay reads the journal there.",
    "absurd and Restate read their journal before the body begins: that is not counted for them.",
    "Restate keeps its journal in files of its own, the others in PostgreSQL.",
]


def step(engine: str) -> str:
    """Name of the figure: a plain step of the first run."""
    return f"{engine}, step"


def replayed(engine: str) -> str:
    """Name of the figure: a step of a replay."""
    return f"{engine}, replayed step"


def references(figures: dict[str, Figure]) -> dict[str, str]:
    """Replays in our replay, everything else in our step."""
    return {name: replayed(OURS) if name.endswith("replayed step") else step(OURS) for name in figures}


def _ours(bodies: Bodies, steps: int) -> list[Case]:
    first, again, body, guards = step(OURS), replayed(OURS), plain(steps), guarded(steps)

    def turn(note: Note) -> None:
        note(first, bodies.run(body)[0] / steps)
        execution = bodies.new_id()
        bodies.interrupt(body, execution)
        note(again, bodies.run(body, execution)[1] / steps)

    def guarding(note: Note) -> None:
        note(OURS_GUARDED, bodies.run(guards)[1] / steps)

    return [Case({first: "s", again: "s"}, turn), Case({OURS_GUARDED: "s"}, guarding)]


def _theirs(program: Program, steps: int) -> Case:
    first, again = step(program.peer.name), replayed(program.peer.name)

    def turn(note: Note) -> None:
        seconds = program.ask(steps)
        note(first, seconds["first"] / steps)
        note(again, seconds["replay"] / steps)

    return Case({first: "s", again: "s"}, turn)


def cases(bodies: Bodies, ground: Floor, programs: Sequence[Program], *, quick: bool) -> list[Case]:
    """The suite."""
    steps = 20 if quick else 500
    theirs = [_theirs(program, steps) for program in programs]
    return [bare(ground, 20 if quick else 200), *_ours(bodies, steps), *theirs]
