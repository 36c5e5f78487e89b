"""Packs: neighbouring finished steps in one journal row.

For a database, another row costs many times more than a hundred bytes more in a row. So finished steps that are
committed together, and need not be found by a key, share a row. Folding a long journal makes the same rows of steps
that were written one by one (:mod:`~.replay.checkpoint`).

A pack consists of: a byte for its form; CRC-32 of everything after it, 4 bytes; the length of the header, 4 bytes; the
header; the fingerprints, 32 bytes each; the payloads. Numbers are big-endian. The header is a JSON list: the number of
steps, then the columns entry, effect, name, attempt, at, duration_us, codec and size (of the payload); each column is a
list, or a single value if it is the same for all steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from typing import Any, Final, cast
from zlib import crc32

from celery_durable.codec.formats import PACK_TAG
from celery_durable.codec.refusal import corrupted
from celery_durable.store.drivers.base import to_journaled
from celery_durable.store.records import FOUND_BY_PLACE, MOST_ENTRIES, Batch, Entry, EntryKind, Journaled, StoredPayload

__all__ = ["LARGEST", "MOST", "is_packable", "pack", "packed", "unpack", "unpacked"]

#: Steps in a pack, at least and at most: a replay holds a whole pack in memory.
_LEAST: Final = 4
MOST: Final = 100
#: Largest size of a pack, and of a step's payload in it, in bytes: for larger ones a separate row costs little.
LARGEST: Final = 65_536
_LARGE: Final = 16_384

_FORM: Final = 1
#: Bytes of a fingerprint.
_PRINT: Final = 32

# Looking up a member of an enumeration is slow.
_RESULT: Final = EntryKind.RESULT
_CHECKPOINT: Final = EntryKind.CHECKPOINT

#: Types of the values in a header's columns.
_TEXTS: Final = frozenset({str})
_NUMBERS: Final = frozenset({int})
_PERHAPS: Final = frozenset({int, type(None)})

_dump = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def is_packable(entry: Entry) -> bool:
    """Whether this is the result of a step that a pack can hold."""
    return (
        entry.kind is _RESULT
        and entry.effect in FOUND_BY_PLACE
        and entry.payload is not None
        and len(entry.payload.data) <= _LARGE
        and entry.fingerprint is not None
        and len(entry.fingerprint) == _PRINT
        and entry.key is None
    )


def packed(batch: Batch) -> Batch:
    """The same batch in fewer rows, if it has neighbouring steps that a pack can hold."""
    entries = batch.entries
    if len(entries) < _LEAST:
        return batch
    rows: list[Entry] = []
    run: list[Entry] = []
    size = 0
    after: tuple[str, int] | None = None
    for entry in entries:
        # A step with failed tries has other rows at its position, and stays with them.
        fits = entry.entry == 0 and is_packable(entry)
        if run and (not fits or (entry.scope, entry.position) != after or len(run) == MOST or size > LARGEST):
            rows += _as_rows(run)
            run, size = [], 0
        if fits:
            run.append(entry)
            size += len(cast("StoredPayload", entry.payload).data)
            after = (entry.scope, entry.position + 1)
        else:
            rows.append(entry)
    rows += _as_rows(run)
    return batch if len(rows) == len(entries) else batch._replace(entries=tuple(rows))


def _as_rows(run: list[Entry]) -> list[Entry]:
    return run if len(run) < _LEAST else [pack(run)]


def pack(steps: Sequence[Entry], at: Sequence[int] | None = None) -> Entry:
    """The row that stands for several steps.

    :param steps: of one scope, at positions without a gap; each :func:`is_packable`.
    :param at: when each was committed, in ms since the epoch; None: together with the row.
    """
    # Every packable step has a payload and a fingerprint.
    payloads = cast("list[StoredPayload]", [step.payload for step in steps])
    prints = cast("list[bytes]", [step.fingerprint for step in steps])
    columns = [
        _column([step.entry for step in steps]),
        _column([step.effect for step in steps]),
        _column([step.name for step in steps]),
        _column([step.attempt for step in steps]),
        None if at is None else _column(list(at)),
        _column([step.duration_us for step in steps]),
        _column([payload.codec for payload in payloads]),
        _column([len(payload.data) for payload in payloads]),
    ]
    header = _dump([len(steps), *columns]).encode()
    body = b"".join([len(header).to_bytes(4, "big"), header, *prints, *[payload.data for payload in payloads]])
    data = b"%c%b%b" % (_FORM, crc32(body).to_bytes(4, "big"), body)
    first = steps[0]
    return Entry(
        first.scope,
        first.position,
        MOST_ENTRIES,
        _CHECKPOINT,
        None,
        "checkpoint",
        payload=StoredPayload(PACK_TAG, data),
    )


def _column(values: list[Any]) -> Any:
    first = values[0]
    return first if values.count(first) == len(values) else values


def unpacked(rows: Iterable[Journaled]) -> Iterator[Journaled]:
    """The same entries, one by one.

    :raises JournalCorrupted: when a pack is damaged.
    """
    for row in rows:
        if row.kind == _CHECKPOINT:
            yield from unpack(row)
        else:
            yield row


def unpack(row: Journaled) -> list[Journaled]:
    """The rows that a pack stands for.

    :raises JournalCorrupted: when it is damaged.
    """
    try:
        return list(map(to_journaled, _rows(row)))
    # With damaged bytes a parser may raise nearly any exception.
    except Exception as error:
        where = f"the checkpoint at position {row.position} of generation {row.generation}"
        raise corrupted(where, f"{type(error).__name__}: {error}") from error


def _rows(row: Journaled) -> Iterable[tuple[Any, ...]]:
    data = row.payload
    if not data or row.codec != PACK_TAG or data[0] != _FORM:
        raise ValueError("it is not a pack in a form that this version knows")
    if crc32(memoryview(data)[5:]) != int.from_bytes(data[1:5], "big"):
        raise ValueError("its check sum is wrong")
    prints = 9 + int.from_bytes(data[5:9], "big")
    count, entry, effect, name, attempt, at, duration, codec, size = json.loads(data[9:prints])
    if type(count) is not int or not 1 <= count <= MOST:
        raise ValueError("it claims more steps than a pack holds")
    for column, kinds in (
        (name, _TEXTS),
        (duration, _PERHAPS),
        (at, _PERHAPS),
        *((column, _NUMBERS) for column in (entry, effect, attempt, codec, size)),
    ):
        if not kinds.issuperset(map(type, column) if type(column) is list else (type(column),)):
            raise TypeError("one of its columns holds something else")
    payloads = prints + count * _PRINT
    ends = list(accumulate(size if type(size) is list else repeat(size, count), initial=payloads))
    return zip(
        repeat(row.generation),
        repeat(row.scope),
        range(row.position, row.position + count),
        _values(entry),
        repeat(int(_RESULT)),
        _values(effect),
        _values(name),
        [data[start : start + _PRINT] for start in range(prints, payloads, _PRINT)],
        repeat(None),
        repeat(row.epoch),
        _values(attempt),
        repeat(row.at) if at is None else _values(at),
        _values(duration),
        _values(codec),
        [data[start:end] for start, end in pairwise(ends)],
        strict=False,
    )


def _values(column: Any) -> Iterable[Any]:
    return column if type(column) is list else repeat(column)
