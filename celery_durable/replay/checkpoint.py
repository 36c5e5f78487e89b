"""Checkpoints: the finished steps of a long journal, folded into packs.

An execution that comes near its step cap may have a journal of thousands of rows, one per step, and every replay reads
all of them. Each run of neighbouring steps is folded into one row. Guarded steps stay as they are, because their keys
and audits must still be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Final

from celery_durable.journal.cursor import PACKS, SEGMENT, read_whole
from celery_durable.journal.packing import LARGEST, MOST, is_packable, pack
from celery_durable.store.records import FOUND_BY_PLACE, Batch, EffectCode, Entry, EntryKind, Journaled, StoredPayload

from .run import Run

__all__ = ["FOLD_AT", "fold_prefix"]

#: Share of the step cap at which the finished prefix starts to be folded.
FOLD_AT: Final = 0.9


def fold_prefix(run: Run) -> int:
    """Fold the finished steps of the body's scope.

    :returns: how many steps were folded.
    """
    folded = 0
    #: Neighbours: nothing else stands between them.
    group: list[Entry] = []
    times: list[int] = []
    size = 0

    def write() -> None:
        nonlocal folded, group, times, size
        if len(group) > 1:
            if not run.fold(Batch(run.fence, run.generation, (pack(group, times),)), group[-1].position):
                return
            folded += len(group)
        group, times, size = [], [], 0

    for rows in _positions(run):
        last = rows[-1]
        step = _packable(last)
        # A gap may be a step of another thread that is just being written.
        gap = group and last.position != group[-1].position + 1
        # The prefix that a rerun shares is not folded with later steps: it is copied when the rest starts again.
        gap = gap or (run.saga.shared is not None and last.position == run.saga.shared.position)
        if gap or step is None or len(group) >= MOST or size > LARGEST:
            write()
        if step is not None:
            group.append(step)
            times.append(last.at)
            size += len(last.payload or b"")
    write()
    return folded


def _packable(row: Journaled) -> Entry | None:
    """The result of a step as it was appended; None if the row is no result, or must stay as it is."""
    if row.kind != EntryKind.RESULT or row.effect not in FOUND_BY_PLACE or row.codec is None or row.payload is None:
        return None
    step = Entry(
        row.scope,
        row.position,
        row.entry,
        EntryKind(row.kind),
        EffectCode(row.effect),
        row.name,
        row.fingerprint,
        row.key,
        row.attempt,
        row.duration_us,
        StoredPayload(row.codec, row.payload),
    )
    return step if is_packable(step) else None


def _positions(run: Run) -> Iterator[list[Journaled]]:
    """The body's scope, position by position; rows are read ahead, because folding removes them."""
    position, limit, ends = 0, PACKS, False
    while not ends:
        rows, position, ends = read_whole(partial(run.load, ""), position, limit)
        for _, group in groupby(rows, key=lambda r: r.position):
            yield list(group)
        # Packs are large, so few rows are read at once.
        limit = PACKS if any(row.kind == EntryKind.CHECKPOINT for row in rows) else min(limit * 2, SEGMENT)
