"""Steps that are in the journal, but that the body has not called by its end: they must not be forgotten or guessed.

A body shows what there is to undo by calling its steps once more. If it ends before it has reached all of them, or no
longer calls the steps of an earlier generation, an operator has to look.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from celery_durable.journal.entries import Past, fold, only_audits
from celery_durable.store.records import Journaled, place_of, runs_again

from .divergence import UNREACHED
from .run import Run

__all__ = ["not_asked_again", "not_reached", "not_told"]

logger = logging.getLogger(__name__)

_HAPPENED = (Past.DONE, Past.SKIPPED, Past.LOST)
#: How many steps a message names at most.
_LISTED = 10


def not_told(task: str, run: Run, left: Iterable[list[Journaled]]) -> str | None:
    """Why a body that failed or is cancelled is not undone now; None if it called every step.

    :param left: entries of this generation that the body has not asked for, position by position.
    """
    doubtful, undoable, others = _sorted_out(run, left)
    lines = [f"{what} is in doubt" for what in doubtful] + undoable
    registered = {name for name, _ in run.saga.registered}
    lines += [f"{name}() had to be called" for name in sorted(_functions(run) - registered)]
    if lines:
        return _parked(run, f"its body ended before it reached all that its journal holds (code {UNREACHED})", lines)
    if others:
        logger.warning(
            "%s[%s] ends before its body reached all that its journal holds (code %s): %s. Nothing of that can be "
            "undone.",
            task,
            run.execution_id,
            UNREACHED,
            _listed(others),
        )
    lines = _in_doubt_before(run) + _undoable_before(run)
    if lines:
        return _parked(run, "its body changed, and no longer asks for steps that it once ran", lines)
    return None


def not_reached(run: Run, left: Iterable[list[Journaled]]) -> str | None:
    """Why a body that returned before it reached the end of its journal does not start again; None if it does.

    :param left: as in :func:`not_told`.
    """
    _, undoable, _ = _sorted_out(run, left)
    if not undoable:
        return None
    return _parked(run, "its body no longer asks for steps that it once ran", undoable)


def not_asked_again(task: str, run: Run) -> str | None:
    """Why a body that returned in a later generation does not complete its execution; None where it does.

    Steps in doubt must not be forgotten (G2). Finished steps that could be undone stay done, because the body has not
    failed; a warning names them.
    """
    if run.standing.degraded or run.generation == run.opened.base_generation:
        return None
    doubtful = _in_doubt_before(run)
    if doubtful:
        return (
            f"its body changed and has ended without asking for what is in doubt: {_listed(doubtful)}. Let it ask for "
            f"that again, then: celery durable resume {run.execution_id}. Or find out what happened, and end it: "
            f"celery durable cancel {run.execution_id} --no-undo"
        )
    left = _undoable_before(run)
    if left:
        logger.warning(
            "%s[%s] completes, and its body, which changed, no longer asks for steps that it ran before: %s. They "
            "stay done; if they should not, undo them by hand.",
            task,
            run.execution_id,
            _listed(left),
        )
    return None


def _sorted_out(run: Run, left: Iterable[list[Journaled]]) -> tuple[list[str], list[str], list[str]]:
    """Steps in doubt, lines about those that could be undone, and steps that are done."""
    doubtful: list[str] = []
    undoable: list[str] = []
    others: list[str] = []
    for rows in left:
        first = rows[0]
        if first.effect is None or only_audits(rows) or run.saga.is_shared(first.scope, first.position):
            continue
        past = fold(rows, payloads=False).past
        if runs_again(rows[-1]) or (past in _HAPPENED and run.saga.can_undo(first.name)):
            undoable.append(_undoable(rows[-1]))
        elif past in (Past.OPEN, Past.UNDECIDED):
            doubtful.append(_word(first))
        elif past in _HAPPENED:
            others.append(_word(first))
    return doubtful, undoable, others


def _in_doubt_before(run: Run) -> list[str]:
    """Steps of earlier generations that this one did not call, and that may or may not have happened."""
    prior = run.prior if run.generation != run.opened.base_generation else None
    return [
        f"step {seen.name!r} (position {place_of(seen.place.scope, seen.place.position)}, generation "
        f"{seen.place.generation}) is in doubt"
        for seen in (prior.in_doubt() if prior is not None else ())
    ]


def _undoable_before(run: Run) -> list[str]:
    """Lines about steps of earlier generations that are done or were begun, and could be undone, but that this
    generation did not call.
    """
    if run.generation == run.opened.base_generation or not run.saga.marked:
        return []
    lines = []
    registered = run.saga.registered
    counts: Counter[tuple[int, str, bytes | None]] = Counter()
    for row in run.done_before():
        if row.scope.startswith("#") or row.effect is None or not run.saga.can_undo(row.name):
            continue
        if run.saga.is_shared(row.scope, row.position):
            continue  # it belongs to another execution
        counts[row.generation, row.name, row.fingerprint] += 1
        if counts[row.generation, row.name, row.fingerprint] > registered[row.name, row.fingerprint]:
            lines.append(_undoable(row))
    return lines


def _functions(run: Run) -> set[str]:
    """Names of the functions that, according to the journal, are called when the body fails."""
    return {name[:-2] for name in run.saga.named if name.endswith("()")}


def _word(row: Journaled) -> str:
    return f"step {row.name!r} (position {place_of(row.scope, row.position)}, generation {row.generation})"


def _undoable(last: Journaled) -> str:
    """
    :param last: the last entry of the step.
    """
    return f"{_word(last)} {'was begun, and ' if runs_again(last) else ''}can be undone"


def _listed(items: list[str]) -> str:
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _parked(run: Run, what: str, items: list[str]) -> str:
    return (
        f"{what}: {_listed(items)}. Without them nobody knows how to undo that, so nothing was undone. Fix what keeps "
        f"the body from asking for it, then: celery durable resume {run.execution_id}. Or undo it by hand, and then: "
        f"celery durable cancel {run.execution_id} --no-undo"
    )
