"""What the entries of the journal mean: all entries of a position together have one meaning."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from celery_durable.effects import Effect
from celery_durable.errors import JournalCorrupted
from celery_durable.store.records import EffectCode, EntryKind, Journaled, StoredPayload, place_of

__all__ = [
    "CODE_OF_EFFECT",
    "EFFECT_OF_CODE",
    "Past",
    "Recorded",
    "effect_of",
    "fold",
    "is_scope",
    "is_wait",
    "only_audits",
]

#: The effects of steps by the codes that are stored.
EFFECT_OF_CODE: Final = {
    EffectCode.IDEMPOTENT: Effect.IDEMPOTENT,
    EffectCode.AT_LEAST_ONCE: Effect.AT_LEAST_ONCE,
    EffectCode.EXACTLY_ONCE_GUARDED: Effect.EXACTLY_ONCE_GUARDED,
    EffectCode.TRANSACTIONAL: Effect.TRANSACTIONAL,
}
CODE_OF_EFFECT: Final = {effect: code for code, effect in EFFECT_OF_CODE.items()}


class Past(enum.Enum):
    """The state that the entries of a position add up to."""

    #: An intent without a result: nobody knows whether the effect happened.
    OPEN = "open"
    #: Tries failed in a known way, or an operator said "run it": the step may be tried.
    TRY = "try"
    #: Ambiguous, and left to an operator who has not decided yet.
    UNDECIDED = "undecided"
    DONE = "done"
    ERROR = "error"
    SKIPPED = "skipped"
    LOST = "lost"
    SCOPE = "scope"
    #: A wait whose end nobody has seen yet, or a timer.
    WAITING = "waiting"


@dataclass(frozen=True)
class Recorded:
    """The entries of one position, folded."""

    past: Past
    name: str
    effect: Effect | None
    fingerprint: bytes | None
    key: bytes | None
    #: Tries made so far.
    attempts: int
    #: Number of the next entry at this position.
    next_entry: int
    #: The deciding entry's payload.
    payload: StoredPayload | None
    #: ms since the epoch, UTC: when the deciding entry was written.
    at: int


_MEANING: Final = {
    EntryKind.INTENT: Past.OPEN,
    EntryKind.ATTEMPT: Past.TRY,
    EntryKind.RUN_AGAIN: Past.TRY,
    EntryKind.AUDIT: Past.UNDECIDED,
    EntryKind.RESULT: Past.DONE,
    EntryKind.ERROR: Past.ERROR,
    EntryKind.SKIPPED: Past.SKIPPED,
    EntryKind.LOST: Past.LOST,
    EntryKind.SCOPE: Past.SCOPE,
    EntryKind.SCOPE_END: Past.SCOPE,
    EntryKind.TIMER: Past.WAITING,
    EntryKind.WAIT: Past.WAITING,
    EntryKind.PROMISE: Past.DONE,
    EntryKind.CALL: Past.WAITING,
}

#: States that need a payload, because only it tells the outcome; a value of None has a payload too.
_TELLING: Final = (Past.DONE, Past.ERROR, Past.SKIPPED)


def is_scope(rows: Sequence[Journaled]) -> bool:
    """True when a position holds a parallel scope, not a step."""
    return rows[0].kind in (EntryKind.SCOPE, EntryKind.SCOPE_END)


def is_wait(rows: Sequence[Journaled]) -> bool:
    """True when a position holds a sleep, a timer, a promise, a wait or a call."""
    return rows[0].kind in (EntryKind.TIMER, EntryKind.PROMISE, EntryKind.WAIT, EntryKind.CALL)


def only_audits(rows: Sequence[Journaled]) -> bool:
    """True when a guarded step stopped before its intent: a conflict, or the doubt of another step.

    Such a position says nothing about the effect.
    """
    return all(row.kind == EntryKind.AUDIT for row in rows)


def fold(rows: Sequence[Journaled], *, payloads: bool = True) -> Recorded:
    """What the entries of one position say together.

    :param payloads: False when they were left out of the read.
    :raises JournalCorrupted: when they contradict each other.
    """
    first, last = rows[0], rows[-1]
    try:
        past = _MEANING[EntryKind(last.kind)]
    except (ValueError, KeyError):
        raise _unknown(last) from None
    effect = effect_of(first)
    for row in rows:
        if row.name != first.name or row.fingerprint != first.fingerprint or row.effect != first.effect:
            raise JournalCorrupted(
                f"the entries of {_where(first)} name different steps ({first.name!r} and {row.name!r}). A row was "
                "changed from outside."
            )
    payload = None if last.codec is None or last.payload is None else StoredPayload(last.codec, last.payload)
    if payloads and payload is None and past in _TELLING:
        raise JournalCorrupted(
            f"{_where(first)} has the end of step {first.name!r} without its payload. The row was changed from "
            "outside; restore it from a backup."
        )
    return Recorded(
        past=past,
        name=first.name,
        effect=effect,
        fingerprint=first.fingerprint,
        key=next((row.key for row in rows if row.key is not None), None),
        attempts=max(row.attempt for row in rows),
        next_entry=last.entry + 1,
        payload=payload,
        at=last.at,
    )


def effect_of(row: Journaled) -> Effect | None:
    """The effect of an entry's step; None if the entry is not of a step.

    :raises JournalCorrupted: for an effect that this version does not know.
    """
    try:
        return None if row.effect is None else EFFECT_OF_CODE[EffectCode(row.effect)]
    except ValueError:
        raise _unknown(row) from None


def _unknown(row: Journaled) -> JournalCorrupted:
    return JournalCorrupted(
        f"{_where(row)} has an entry of kind {row.kind} and effect {row.effect}, which this version does not know. "
        "The journal was written by a newer version, or its row was changed from outside."
    )


def _where(row: Journaled) -> str:
    return f"position {place_of(row.scope, row.position)} of generation {row.generation}"
