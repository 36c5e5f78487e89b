"""The errors for a body that asks for other steps than its journal holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from celery_durable.effects import Effect
from celery_durable.errors import ReplayDivergence
from celery_durable.identity import short
from celery_durable.journal.entries import effect_of, is_scope
from celery_durable.store.records import EntryKind, Journaled

from .scope import ScopeState

__all__ = [
    "UNREACHED",
    "check_scope",
    "check_step",
    "check_wait",
    "endless",
    "leftover",
    "source_line",
    "unexpected",
]

#: After this many, an operator has to look: a body that waits, and differs each time, would restart for ever.
_MOST_GENERATIONS: Final = 100

#: Stable codes, also in the docs.
NAME = "CD101"
EFFECT = "CD102"
KIND = "CD103"
ARGUMENTS = "CD104"
UNEXPECTED = "CD105"
UNREACHED = "CD106"
BRANCHES = "CD107"

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep

_CURE = (
    "The body changed, or does not ask for the same steps each time. Wrap what varies (time, random numbers, reads)\n"
    '  in a step, or keep old executions on the old path with self.durable.patched("...").'
)


def source_line() -> str:
    """File and line of the innermost frame outside this library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{Path(*Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"


#: Names for entries that are no steps.
_WORDS = {EntryKind.TIMER: "timer", EntryKind.PROMISE: "promise", EntryKind.WAIT: "wait", EntryKind.CALL: "call"}


def describe(name: str, effect: Effect | None, fingerprint: bytes | None, kind: int | None = None) -> str:
    """One side of the comparison."""
    if effect is None:
        return f"{name} ({_word(kind)})"
    return f"{name} ({effect.value}), arguments {short(fingerprint) if fingerprint else '-'}"


def _word(kind: int | None) -> str:
    return _WORDS.get(EntryKind(kind), "scope") if kind is not None else "scope"


def recorded(rows: Sequence[Journaled]) -> str:
    """The journal's side of the comparison."""
    first = rows[0]
    return describe(first.name, effect_of(first), first.fingerprint, first.kind)


def _divergence(
    code: str, execution_id: str, place: str, what: str, was: str, asked: str, source: str | None
) -> ReplayDivergence:
    lines = [
        f"execution {execution_id} diverged from its journal at position {place}: {what}.",
        f"  recorded   {was}",
        f"  requested  {asked}",
    ]
    if source:
        lines.append(f"  source     {source}")
    lines.append(f"  {_CURE}")
    return ReplayDivergence("\n".join(lines), code=code, execution_id=execution_id, place=place)


def check_step(
    rows: Sequence[Journaled], execution_id: str, place: str, name: str, effect: Effect, fingerprint: bytes
) -> ReplayDivergence | None:
    """Compare a requested step with the entries at its position."""
    first = rows[0]
    if first.fingerprint == fingerprint and first.effect is not None:
        return None  # the fingerprint covers name and effect too
    if first.effect is None:
        code, what = KIND, "the kind of operation changed"
    elif first.name != name:
        code, what = NAME, "another step was recorded"
    elif effect_of(first) is not effect:
        code, what = EFFECT, "the step's effect changed"
    else:
        code, what = ARGUMENTS, "the step's arguments changed"
    asked = describe(name, effect, fingerprint)
    return _divergence(code, execution_id, place, what, recorded(rows), asked, source_line())


def check_scope(rows: Sequence[Journaled], execution_id: str, place: str, name: str) -> ReplayDivergence | None:
    """Compare a requested scope with the entries at its position."""
    first = rows[0]
    if is_scope(rows) and first.name == name:
        return None
    code, what = (NAME, "another scope was recorded") if is_scope(rows) else (KIND, "the kind of operation changed")
    return _divergence(code, execution_id, place, what, recorded(rows), describe(name, None, None), source_line())


def check_wait(
    rows: Sequence[Journaled] | None,
    execution_id: str,
    scope: ScopeState,
    position: int,
    kind: EntryKind,
    name: str,
    fingerprint: bytes,
) -> ReplayDivergence | None:
    """Compare a requested wait with the entries at its position, if there are any."""
    place, asked = scope.place(position), describe(name, None, None, kind)
    if rows is None:
        if scope.end is None or position < scope.end:
            return None
        what = "a wait where the finished branch had none"
        return _divergence(UNEXPECTED, execution_id, place, what, "the end of the branch", asked, source_line())
    if rows[0].kind == kind and rows[0].fingerprint == fingerprint:
        return None
    if rows[0].kind != kind:
        code, what = KIND, "the kind of operation changed"
    elif rows[0].name != name:
        code, what = NAME, f"another {_WORDS[kind]} was recorded"
    else:
        code, what = ARGUMENTS, "what is waited for changed"
    return _divergence(code, execution_id, place, what, recorded(rows), asked, source_line())


def unexpected(execution_id: str, place: str, name: str, effect: Effect, fingerprint: bytes) -> ReplayDivergence:
    """A finished branch asks for a step beyond its recorded end."""
    what = "a step where the finished branch had none"
    asked = describe(name, effect, fingerprint)
    return _divergence(UNEXPECTED, execution_id, place, what, "the end of the branch", asked, source_line())


def leftover(execution_id: str, place: str, rows: Sequence[Journaled], what: str = "the body") -> ReplayDivergence:
    """The body, or a branch, ended before a recorded step."""
    return _divergence(
        UNREACHED, execution_id, place, "a recorded step was never reached", recorded(rows), f"the end of {what}", None
    )


def endless(begun: int, last: ReplayDivergence) -> str | None:
    """Why an execution that has restarted this often does not restart once more; None if it does.

    When an operator resumes it, the count starts again.
    """
    if begun % _MOST_GENERATIONS:
        return None
    return (
        f"its body has restarted {_MOST_GENERATIONS} times, because it asks for other steps each time. Fix it, then "
        "resume the execution. The last time:\n"
        f"{last}"
    )


def branches(execution_id: str, place: str, was: int, now: int) -> ReplayDivergence:
    """A finished parallel scope now has a different number of branches."""
    what = "the number of branches changed"
    return _divergence(BRANCHES, execution_id, place, what, f"{was} branches", f"{now} branches", source_line())
