"""Random sagas: what a body does, as data that travels in a message."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

__all__ = ["plan"]

#: A statement is a list: what to do, and with what.
#:
#: ``["do", name, kind]``          a step that can be undone; ``kind`` is its effect and policy
#: ``["register", name]``          ``on_failure``
#: ``["sleep", seconds]``          durably
#: ``["pause", seconds]``          in the body, so that something else can happen meanwhile
#: ``["branches", [plan, ...]]``   beside each other
#: ``["drifts", old, new]``        a step that has another name after the deploy
#: ``["goes", name]``              a step that the deploy removes
#: ``["comes", name]``             a step that the deploy adds
#: ``["refuse"]``                  raises
#: ``["refuse rerun"]``            raises in a rerun
#: ``["try", plan]``               whose refusal the body handles
#: ``["retry"]``                   Celery's retry, once
Statement = list[Any]

KINDS = ("idempotent", "at_least_once", "RERUN", "FAIL", "asks", "transactional")


def plan(random: Random) -> list[Statement]:
    """A body of a few statements; about half of them refuse in the end."""
    names = (f"s{number}" for number in itertools.count())
    statements = _statements(random, names, depth=0, count=random.randint(2, 5))
    if random.random() < 0.15:
        statements.insert(random.randrange(len(statements) + 1), ["retry"])
    statements.append(random.choice((["refuse"], ["refuse rerun"], ["pause", 0.01])))
    return statements


def _statements(random: Random, names: Any, depth: int, count: int) -> list[Statement]:
    return [_statement(random, names, depth) for _ in range(count)]


def _statement(random: Random, names: Any, depth: int) -> Statement:
    what = random.choices(
        ("do", "register", "sleep", "pause", "branches", "drifts", "goes", "comes", "try"),
        (40, 6, 8, 8, 14 if depth < 2 else 0, 5, 3, 3, 6 if depth < 2 else 0),
    )[0]
    if what == "do":
        return [what, next(names), random.choice(KINDS)]
    if what in ("register", "goes", "comes"):
        return [what, next(names)]
    if what == "drifts":
        return [what, next(names), next(names)]
    if what in ("sleep", "pause"):
        return [what, random.choice((0.01, 0.05, 0.2))]
    if what == "try":
        inner = _statements(random, names, depth + 1, random.randint(1, 2))
        return [what, inner + [["refuse"]] * (random.random() < 0.5)]
    branches = [_statements(random, names, depth + 1, random.randint(1, 3)) for _ in range(random.randint(2, 3))]
    if random.random() < 0.1:
        random.choice(branches).append(["refuse"])
    return [what, branches]
