"""Checkpoints: many finished idempotent steps in one journal row.

An execution that comes near its step cap has a journal of thousands of rows, each read again by every replay.
Its finished idempotent steps are folded, a run of neighbours to a row; guarded steps stay as they are, for their
keys and audits must remain to be found.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from .codec import Codec
from .codec.refusal import corrupted
from .replay import SEGMENT, WITH_CHECKPOINT
from .store.records import Batch, EffectCode, Entry, EntryKind, Journaled, StoredPayload

if TYPE_CHECKING:
    from .run import Run

__all__ = ["FOLD_AT", "expand", "fold_prefix", "is_folded"]

#: Share of the step cap from which on the finished prefix is folded.
FOLD_AT: Final = 0.9

#: Beyond every entry that a step can have at its first position.
_ENTRY: Final = 30_000
_FOLDABLE: Final = (EffectCode.IDEMPOTENT, EffectCode.AT_LEAST_ONCE)
_WHERE: Final = "a checkpoint"


def expand(row: Journaled, codec: Codec) -> Sequence[Journaled]:
    """The rows that a checkpoint stands for.

    :raises JournalCorrupted: when it is damaged.
    """
    where = f"the checkpoint at position {row.position} of generation {row.generation}"
    if row.codec is None or row.payload is None:
        raise corrupted(where, "it has no payload")
    packed = codec.decode(row.codec, row.payload, where)
    if not isinstance(packed, list):
        raise corrupted(where, f"it holds a {type(packed).__name__}")
    names: dict[str, str] = {}
    rows = []
    try:
        # From the end, so that what is packed goes as what is unpacked comes.
        while packed:
            rows.append(_unpack(row, names, *packed.pop()))
        rows.reverse()
        return rows
    except (TypeError, ValueError) as error:
        raise corrupted(where, f"{type(error).__name__}: {error}") from error


def _unpack(
    row: Journaled,
    names: dict[str, str],
    position: int,
    entry: int,
    effect: int,
    name: str,
    fingerprint: str,
    attempt: int,
    at: int,
    duration: int | None,
    tag: int | None,
    payload: str | None,
) -> Journaled:
    return row._replace(
        position=position,
        entry=entry,
        kind=int(EntryKind.RESULT),
        effect=effect,
        # Most steps have the name of their neighbour.
        name=names.setdefault(name, name),
        fingerprint=base64.b64decode(fingerprint),
        attempt=attempt,
        at=at,
        duration_us=duration,
        codec=tag,
        payload=None if payload is None else base64.b64decode(payload),
    )


def _pack(row: Journaled) -> list[Any]:
    payload = None if row.payload is None else base64.b64encode(row.payload).decode()
    fingerprint = base64.b64encode(row.fingerprint or b"").decode()
    return [
        row.position,
        row.entry,
        row.effect,
        row.name,
        fingerprint,
        row.attempt,
        row.at,
        row.duration_us,
        row.codec,
        payload,
    ]


def _foldable(rows: Sequence[Journaled]) -> bool:
    return rows[-1].kind == EntryKind.RESULT and rows[0].effect in _FOLDABLE


def fold_prefix(run: Run) -> int:
    """Fold the finished steps of the body's scope into checkpoints.

    :returns: how many steps were folded.
    """
    folded = 0
    #: Neighbours: nothing else stands between them.
    group: list[Journaled] = []
    size = 0
    # A checkpoint's payload obeys the same limit as any other; base64 takes a third more.
    limit = run.codec.max_payload_bytes // 2

    def write() -> None:
        nonlocal folded, group, size
        if len(group) > 1:
            data = StoredPayload(*run.codec.encode([_pack(r) for r in group], _WHERE))
            entry = Entry("", group[0].position, _ENTRY, EntryKind.CHECKPOINT, None, "checkpoint", payload=data)
            if not run.fold(Batch(run.fence, run.generation, (entry,)), group[-1].position):
                return
            folded += len(group)
        group, size = [], 0

    for rows in _positions(run):
        last = rows[-1]
        weight = (len(last.payload) if last.payload else 0) * 4 // 3 + len(last.name) + 150
        # A gap may be a step of another thread that is just being written.
        gap = group and last.position != group[-1].position + 1
        if gap or not _foldable(rows) or len(group) >= SEGMENT or size + weight > limit:
            write()
        if _foldable(rows) and weight <= limit:
            group.append(last)
            size += weight
    write()
    return folded


def is_folded(run: Run) -> bool:
    """Whether a resumed body's journal begins with checkpoints, most likely."""
    return run.opened.steps > FOLD_AT * run.limits.max_steps


def _positions(run: Run) -> Iterator[list[Journaled]]:
    """The body's scope, position by position; rows are read ahead, for folding removes them."""
    position, limit = 0, WITH_CHECKPOINT if is_folded(run) else SEGMENT
    while True:
        rows = list(run.load("", position, limit))
        full = len(rows) == limit
        cut = rows[-1].position if full else None
        if full and rows[0].position == cut:
            limit *= 2  # one position alone fills it
            continue
        for number, group in groupby(rows, key=lambda r: r.position):
            if number != cut:
                yield list(group)
        if cut is None:
            return
        position = cut
        limit = WITH_CHECKPOINT if rows[0].kind == EntryKind.CHECKPOINT else SEGMENT
