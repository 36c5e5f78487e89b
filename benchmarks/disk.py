"""What the ratios depend on: the same steps where every commit takes longer, as it does on a slower disk.

PostgreSQL can be asked to wait before each sync (``commit_delay``), by every connection for itself. The bare commit
waits as those of the journal do, so disk and program can be told apart on one machine, in one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg
from sqlalchemy.engine import make_url

from tests.support.backends import Missing

from .bodies import Bodies
from .floor import BARE, Floor, bare, postgresql
from .harness import Case, Note
from .steps import GUARDED_STEP, guarded, plain, whole

__all__ = ["DELAYS", "REMARKS", "cases", "delayed", "references"]

#: Microseconds added to every sync.
DELAYS: Final = (0, 250, 500, 1000)
REMARKS: Final = (
    "Every sync waits so much longer (commit_delay), the bare commit's too. What a step computes stays the same.",
)
_STEPS: Final = 100


def delayed(url: str, delay: int) -> str:
    """The same database, by connections whose commits wait.

    :param delay: microseconds.
    :raises Missing: where we may not ask for it, or are not heard.
    """
    wanted = f"-c commit_delay={delay} -c commit_siblings=0"
    slower = make_url(url).update_query_dict({"options": wanted})
    try:
        with postgresql(slower) as connection:
            synced = connection.execute("SHOW fsync").fetchone()
    except psycopg.OperationalError as error:
        raise Missing(f"commit_delay could not be set, which takes a superuser: {error}") from error
    if synced != ("on",):
        raise Missing("this PostgreSQL does not sync its commits (fsync = off), so commit_delay delays nothing")
    return slower.render_as_string(hide_password=False)


def _named(figure: str, delay: int) -> str:
    return f"{figure}, syncs {delay:,} µs longer"


def references() -> dict[str, str]:
    """Every figure in the bare commit that waits as long."""
    return {
        _named(what, delay): _named(BARE, delay) for delay in DELAYS for what in (BARE, whole(_STEPS), GUARDED_STEP)
    }


def cases(enter: Callable[[int], tuple[Bodies, Floor]], *, quick: bool) -> list[Case]:
    """All delays take turns.

    :param enter: gives bodies and a floor whose syncs wait so many microseconds longer.
    """
    return [_case(*enter(delay), delay, quick=quick) for delay in DELAYS]


def _case(bodies: Bodies, ground: Floor, delay: int, *, quick: bool) -> Case:
    reference = bare(ground, 10 if quick else 100, _named(BARE, delay))
    step, guard = _named(whole(_STEPS), delay), _named(GUARDED_STEP, delay)

    def turn(note: Note) -> None:
        reference.turn(note)
        for _ in range(2 if quick else 10):
            note(step, bodies.run(plain(_STEPS))[0] / _STEPS)
        for _ in range(2 if quick else 30):
            note(guard, bodies.run(guarded(5))[1] / 5)

    return Case({**reference.figures, step: "s", guard: "s"}, turn)
