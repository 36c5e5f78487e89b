"""The edges of sagas: at each stands a process when it is killed, or when a cancellation or a deploy comes, or several.

The body does ``first``, registers ``tell``, does ``edge`` beside ``beside``, and ``last``; all of that can be undone. A
case says what arrives where, in which form the two in the middle are beside each other, and what kind the step ``edge``
and its compensation are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = ["AGAIN", "CASES", "SHAPES", "Case"]

SHAPES = ("threads", "gather", "nested", "async", "serial")
KINDS = ("RERUN", "FAIL", "asks", "SKIP", "idempotent")
UNDOS = ("plain", "FAIL", "asks", "idempotent")

DOING = (
    "step.before_intent",
    "step.after_intent",
    "effect.before",
    "effect.after",
    "step.before_result",
    "step.after_result",
)
WAITING = ("wait.before_arm", "wait.before_suspend", "wait.after_suspend")
DECIDING = ("saga.before_decision", "saga.after_decision")
#: Of a process that runs the body, of one that has undone it.
BEGINNING, ENDING = ("task.before_body",), ("task.before_outcome", "task.after_outcome")


@dataclass(frozen=True)
class Case:
    """One execution."""

    #: ``kill``, ``cancel``, ``cancel+kill``, ``deploy+kill``, ``deploy+cancel+kill``.
    arrives: str
    point: str
    #: The step that the point belongs to, if it belongs to one.
    step: str
    shape: str
    kind: str = "RERUN"
    #: The kind of the compensation: ``plain`` for a function that is no step.
    undo: str = "plain"
    #: The body ``fails``, ``ends``, or ``waits`` until it is cancelled.
    ending: str = "fails"
    #: What the new code does: ``inserts`` a step, ``renames`` or ``drops`` the one under test.
    change: str = ""
    #: Where the process that takes over is killed.
    then: str = ""

    @property
    def id(self) -> str:
        """Of the execution."""
        words = dataclasses.astuple(self)
        return "-".join(word.replace(" ", "_").replace("+", "_") for word in words if word)


def _cases() -> list[Case]:
    found: list[Case] = []

    def shapes(count: int, number: int) -> list[str]:
        """So many, others for each number."""
        return [(SHAPES * 3)[number % len(SHAPES) + one] for one in range(count)]

    number = 0
    for arrives, ending, count in (("kill", "fails", 1), ("cancel", "ends", 2), ("cancel+kill", "ends", 2)):
        for kind in KINDS:
            for point in DOING:
                number += 1
                found += [Case(arrives, point, "edge", shape, kind, ending=ending) for shape in shapes(count, number)]
        for undo in UNDOS:
            for point in DOING:
                number += 1
                if undo == "idempotent" and "intent" in point:
                    continue  # it has none
                found += [Case(arrives, point, "undo edge", shape, undo=undo) for shape in shapes(1, number)]
        for point in (*DECIDING, *BEGINNING, *ENDING):
            number += 1
            found += [Case(arrives, point, "", shape) for shape in shapes(2, number)]
    for arrives in ("cancel", "cancel+kill"):
        for point in (*WAITING, *ENDING):
            ending = "waits" if point in WAITING else "ends"
            number += 1
            found += [Case(arrives, point, "", shape, ending=ending) for shape in shapes(2, number)]
    for change in ("inserts", "renames", "drops"):
        for point, step in (
            ("step.after_result", "edge"),
            ("effect.after", "edge"),
            ("saga.after_decision", ""),
            ("effect.after", "undo last"),
        ):
            number += 1
            for shape, then in zip(shapes(2, number), ("", "saga.after_decision"), strict=True):
                # Where it is being undone already, the new code is not asked.
                twice = then if step == "edge" and change == "inserts" else ""
                found.append(Case("deploy+kill", point, step, shape, change=change, then=twice))
        found.append(Case("deploy+cancel+kill", "step.after_result", "beside", shapes(1, number)[0], change=change))
    return found


CASES = _cases()

#: What arrives at reruns of executions that have ended well, from the step after the branches on. They fail.
AGAIN = [
    Case(arrives, point, step, shape, ending="ends")
    for shape in SHAPES
    for arrives, point, step in (
        ("kill", "saga.before_decision", ""),
        ("kill", "effect.after", "undo last"),
        ("cancel", "step.after_intent", "last"),
        ("cancel+kill", "effect.after", "last"),
    )
]
