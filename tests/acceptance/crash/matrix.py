"""The crash matrix: what becomes of a step whose process is killed, for every place, effect and policy.

A cell says how often the effect happens in the end, and what the body gets for the step:

======== =====================================================================================
live     what the operation returned
assumed  the value that SKIP assumes
told     what the reconcile callable was told by the remote side
parked   nothing: the execution waits for an operator, as ``ambiguous``
======== =====================================================================================

``!`` stands where knowledge was lost: then an audit entry says so, one per exclamation mark. There is none elsewhere.
``1..2`` leaves open which of the two it is. ``-`` is a place that such a step does not pass.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MATRIX", "Cell", "Kill"]

# "x, then y": killed at x; the process that takes over is killed at y. "y/2": when y is passed for the second time.
# "undoable" is an at-least-once step with a compensation.
# effect.before and effect.after lie inside the operation, around the very moment in which the effect happens.
# "happened", "did_not" and "unknown" are reconcile callables that always say so, "asks" is one that looks.
_TABLE = """
killed at                                   | idempotent | at_least_once | undoable   | SKIP        | RERUN     | FAIL       | happened   | did_not    | unknown    | asks
step.before_intent                          | -          | -             | 1 live     | 1 live      | 1 live    | 1 live     | 1 live     | 1 live     | 1 live     | 1 live
step.after_intent                           | -          | -             | 1 live     | 0 assumed ! | 1 live !  | 0 parked ! | 0 told !   | 1 live !   | 0 parked ! | 1 live !
step.before_effect                          | 1 live     | 1 live        | 1 live     | 0 assumed ! | 1 live !  | 0 parked ! | 0 told !   | 1 live !   | 0 parked ! | 1 live !
effect.before                               | 1 live     | 1 live        | 1 live     | 0 assumed ! | 1 live !  | 0 parked ! | 0 told !   | 1 live !   | 0 parked ! | 1 live !
effect.after                                | 2 live     | 2 live        | 2 live     | 1 assumed ! | 2 live !  | 1 parked ! | 1 told !   | 2 live !   | 1 parked ! | 1 told !
step.after_effect                           | 2 live     | 2 live        | 2 live     | 1 assumed ! | 2 live !  | 1 parked ! | 1 told !   | 2 live !   | 1 parked ! | 1 told !
step.before_result                          | 2 live     | 2 live        | 2 live     | 1 assumed ! | 2 live !  | 1 parked ! | 1 told !   | 2 live !   | 1 parked ! | 1 told !
step.after_result                           | 1..2 live  | 1..2 live     | 1..2 live  | 1 live      | 1 live    | 1 live     | 1 live     | 1 live     | 1 live     | 1 live
task.before_outcome                         | 1 live     | 1 live        | 1 live     | 1 live      | 1 live    | 1 live     | 1 live     | 1 live     | 1 live     | 1 live
task.after_outcome                          | 1 live     | 1 live        | 1 live     | 1 live      | 1 live    | 1 live     | 1 live     | 1 live     | 1 live     | 1 live
task.returned                               | 1 live     | 1 live        | 1 live     | 1 live      | 1 live    | 1 live     | 1 live     | 1 live     | 1 live     | 1 live
step.after_effect, then task.after_open/2   | 2 live     | 2 live        | 2 live     | 1 assumed ! | 2 live !  | 1 parked ! | 1 told !   | 2 live !   | 1 parked ! | 1 told !
step.after_effect, then step.before_effect/2| 2 live     | 2 live        | 2 live     | -           | 2 live !! | -          | -          | 2 live !!  | -          | -
effect.after, then effect.after             | 3 live     | 3 live        | 3 live     | -           | 3 live !! | -          | -          | 3 live !!  | -          | -
effect.before, then reconcile.before        | -          | -             | -          | -           | -         | -          | 0 told !   | 1 live !   | 0 parked ! | 1 live !
effect.after, then reconcile.before         | -          | -             | -          | -           | -         | -          | 1 told !   | 2 live !   | 1 parked ! | 1 told !
effect.after, then task.before_park         | -          | -             | -          | -           | -         | 1 parked !! | -         | -          | 1 parked !! | -
effect.after, then task.after_park          | -          | -             | -          | -           | -         | 1 parked ! | -          | -          | 1 parked ! | -
"""  # noqa: E501


@dataclass(frozen=True)
class Kill:
    """Where a process is killed."""

    point: str
    #: At which pass.
    nth: int = 1

    @property
    def step(self) -> str:
        """The step that the place belongs to, if it belongs to one."""
        return "" if self.point.startswith("task.") else "edge"


@dataclass(frozen=True)
class Cell:
    """One expectation."""

    place: str
    kills: tuple[Kill, ...]
    #: The key of the step in the application: its effect class, or the policy of a guarded one.
    edge: str
    fired: frozenset[int]
    #: ``live``, ``assumed``, ``told`` or ``parked``.
    ends: str
    audits: int

    def __str__(self) -> str:
        return f"{self.place.replace(', then ', '+')}-{self.edge}"

    @property
    def id(self) -> str:
        """Of the execution."""
        return str(self).replace("/", "_")


def _cells() -> list[Cell]:
    head, *rows = [[word.strip() for word in line.split("|")] for line in _TABLE.strip().splitlines()]
    return [
        _cell(row[0], edge, text) for row in rows for edge, text in zip(head[1:], row[1:], strict=True) if text != "-"
    ]


def _cell(place: str, edge: str, text: str) -> Cell:
    kills = []
    for word in place.split(", then "):
        point, _, nth = word.partition("/")
        kills.append(Kill(point, int(nth or 1)))
    times, ends, *marks = text.split()
    least, _, most = times.partition("..")
    fired = frozenset(range(int(least), int(most or least) + 1))
    return Cell(place, tuple(kills), edge, fired, ends, len("".join(marks)))


MATRIX = _cells()
