"""Packs: what goes into one comes out of it, whatever is committed together, and nothing damaged comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celery_durable import JournalCorrupted
from celery_durable.journal.cursor import ReplayCursor
from celery_durable.journal.packing import LARGEST, MOST, is_packable, pack, packed, unpack
from celery_durable.store.records import Batch, EffectCode, Entry, EntryKind, Fence, Journaled, StoredPayload

FENCE = Fence(7, 3)
GENERATION, AT = 2, 1_700_000_000_000

payloads = st.builds(StoredPayload, st.integers(1, 300), st.binary(max_size=40))
effects = st.sampled_from([EffectCode.IDEMPOTENT, EffectCode.AT_LEAST_ONCE])
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def results(draw: Any, *, scope: str = "", position: int = 0) -> Entry:
    """What a quick step leaves behind."""
    return Entry(
        scope,
        position,
        0,
        EntryKind.RESULT,
        draw(effects),
        draw(names),
        draw(st.binary(min_size=32, max_size=32)),
        None,
        draw(st.integers(1, 9)),
        draw(st.none() | st.integers(0, 2**40)),
        draw(payloads),
    )


@st.composite
def histories(draw: Any) -> list[Entry]:
    """What a body appends: quick steps for the most part, in two scopes, and all that is none."""
    entries: list[Entry] = []
    ends = {"": 0, "3.0": 0}
    for what in draw(st.lists(st.sampled_from(["quick"] * 8 + ["guarded", "tried", "large", "scope"]), max_size=40)):
        scope = draw(st.sampled_from(["", "", "", "3.0"]))
        position = ends[scope]
        # Where a position is left out, the step of another thread is under way.
        ends[scope] += draw(st.sampled_from([1] * 15 + [2]))
        result = draw(results(scope=scope, position=position))
        if what == "guarded":
            guarded = result._replace(effect=EffectCode.EXACTLY_ONCE_GUARDED, key=b"k" * 32)
            entries += [guarded._replace(kind=EntryKind.INTENT), guarded._replace(entry=1)]
        elif what == "tried":
            entries += [result._replace(kind=EntryKind.ATTEMPT), result._replace(entry=1, attempt=2)]
        elif what == "large":
            entries.append(result._replace(payload=StoredPayload(17, b"x" * 20_000)))
        elif what == "scope":
            entries.append(Entry(scope, position, 0, EntryKind.SCOPE, None, "parallel"))
        else:
            entries.append(result)
    return entries


def stored(entry: Entry) -> Journaled:
    """The row of an entry, as the store gives it back."""
    codec, data = entry.payload or (None, None)
    effect = None if entry.effect is None else int(entry.effect)
    return Journaled(
        GENERATION, entry.scope, entry.position, entry.entry, int(entry.kind), effect, entry.name, entry.fingerprint,
        entry.key, FENCE.epoch, entry.attempt, AT, entry.duration_us, codec, data,
    )  # fmt: skip


def ordered(entries: Sequence[Entry]) -> list[Journaled]:
    return sorted(map(stored, entries), key=lambda row: (row.scope, row.position, row.entry))


def batches(draw: st.DataObject, entries: list[Entry]) -> list[Batch]:
    """The same in several commits, packed."""
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(entries)), max_size=4)))
    parts = [entries[a:b] for a, b in zip([0, *cuts], [*cuts, len(entries)], strict=True)]
    return [packed(Batch(FENCE, GENERATION, tuple(part), len(part), last=len(part))) for part in parts]


@given(st.data(), st.integers(1, 12))
def test_what_was_packed_is_what_is_unpacked(data: st.DataObject, count: int) -> None:
    steps = [data.draw(results(scope="4.1", position=30 + n)) for n in range(count)]
    assert unpack(stored(pack(steps))) == list(map(stored, steps))
    times = data.draw(st.lists(st.integers(0, 2**45), min_size=count, max_size=count))
    dated = [stored(step)._replace(at=at) for step, at in zip(steps, times, strict=True)]
    assert unpack(stored(pack(steps, times))) == dated


@given(st.data(), histories())
def test_nothing_is_lost_in_packs_and_nothing_else_is_packed(data: st.DataObject, entries: list[Entry]) -> None:
    found: list[Journaled] = []
    for batch in batches(data, entries):
        assert (batch.steps, batch.fence) == (batch.last, FENCE)
        for entry in batch.entries:
            if entry.kind is not EntryKind.CHECKPOINT:
                found.append(stored(entry))
                continue
            steps = unpack(stored(entry))
            assert 4 <= len(steps) <= MOST
            assert [step.position for step in steps] == list(range(entry.position, entry.position + len(steps)))
            found += steps
    assert sorted(found, key=lambda row: (row.scope, row.position, row.entry)) == ordered(entries)


@given(st.data(), histories(), st.integers(2, 20), st.booleans())
def test_a_body_reads_the_same_from_packs(data: st.DataObject, entries: list[Entry], segment: int, long: bool) -> None:
    rows = ordered([entry for batch in batches(data, entries) for entry in batch.entries])

    def load(position: int, limit: int) -> list[Journaled]:
        return [row for row in rows if row.scope == "" and row.position >= position][:limit]

    wanted: dict[int, list[Journaled]] = {}
    for row in ordered(entries):
        if row.scope == "":
            wanted.setdefault(row.position, []).append(row)
    cursor = ReplayCursor(load, empty=False, long=long, segment=segment)
    for position in range(max(wanted, default=0) + 3):
        assert cursor.take(position) == wanted.get(position)
    assert cursor.exhausted
    assert cursor.first_left(0) is None


def test_packs_are_read_a_few_at_a_time_wherever_they_begin() -> None:
    """A hundred rows may be ten thousand steps."""
    steps = [
        Entry("", n, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "s", b"f" * 32, payload=StoredPayload(17, b"1"))
        for n in range(5_020)
    ]
    rows = [*map(stored, steps[:10]), *map(stored, packed(Batch(FENCE, GENERATION, tuple(steps[10:2_510]))).entries)]
    rows += [*map(stored, steps[2_510:2_520]), *map(stored, packed(Batch(FENCE, 1, tuple(steps[2_520:]))).entries)]
    read = []

    def load(position: int, limit: int) -> list[Journaled]:
        found = [row for row in rows if row.position >= position][:limit]
        read.append(sum(row.kind == EntryKind.CHECKPOINT for row in found))
        return found

    cursor = ReplayCursor(load, empty=False, long=True)
    held = 0
    for position in range(5_020):
        assert cursor.take(position) is not None
        held = max(held, len(cursor._groups))
    assert sum(read) == 50, "none was read twice"
    assert max(read) <= 8
    assert held < 2 * 100


def test_a_long_run_becomes_several_packs_of_a_hundred() -> None:
    entries = [
        Entry("", n, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "s", b"f" * 32, payload=StoredPayload(17, b"%d" % n))
        for n in range(230)
    ]
    batch = packed(Batch(FENCE, GENERATION, tuple(entries), 230, last=230))
    assert [(entry.position, len(unpack(stored(entry)))) for entry in batch.entries] == [
        (0, 100),
        (100, 100),
        (200, 30),
    ]
    assert (batch.steps, batch.last) == (230, 230)


def test_a_pack_is_closed_before_it_grows_large() -> None:
    text = b"x" * 16_000
    entries = [
        Entry("", n, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "s", b"f" * 32, payload=StoredPayload(17, text))
        for n in range(50)
    ]
    batch = packed(Batch(FENCE, GENERATION, tuple(entries)))
    sizes = [len(entry.payload.data) for entry in batch.entries if entry.payload]
    assert len(sizes) == 10
    assert max(sizes) < LARGEST + len(text) + 2_000


@pytest.mark.parametrize(
    "change",
    [
        {"kind": EntryKind.ERROR},
        {"effect": EffectCode.TRANSACTIONAL},
        {"effect": EffectCode.EXACTLY_ONCE_GUARDED},
        {"effect": None},
        {"key": b"k" * 32},
        {"fingerprint": None},
        {"payload": None},
        {"payload": StoredPayload(17, b"x" * 16_385)},
    ],
    ids=lambda change: "-".join(f"{k}={str(v)[:24]}" for k, v in change.items()),
)
def test_what_must_be_found_by_itself_is_not_packed(change: dict[str, Any]) -> None:
    step = Entry("", 0, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "s", b"f" * 32, payload=StoredPayload(17, b"1"))
    assert is_packable(step)
    assert not is_packable(step._replace(**change))


@given(st.data())
def test_a_damaged_byte_is_noticed(data: st.DataObject) -> None:
    steps = [data.draw(results(position=n)) for n in range(data.draw(st.integers(1, 5)))]
    row = stored(pack(steps))
    assert row.payload is not None
    place = data.draw(st.integers(0, len(row.payload) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(byte != row.payload[place])
    damaged = row.payload[:place] + bytes([byte]) + row.payload[place + 1 :]
    with pytest.raises(JournalCorrupted, match="checkpoint at position 0 of generation 2 cannot be read back"):
        unpack(row._replace(payload=damaged))


@given(st.data())
def test_a_cut_pack_is_noticed(data: st.DataObject) -> None:
    row = stored(pack([data.draw(results(position=n)) for n in range(4)]))
    assert row.payload is not None
    left = row.payload[: data.draw(st.integers(0, len(row.payload) - 1))]
    with pytest.raises(JournalCorrupted, match="cannot be read back"):
        unpack(row._replace(payload=left))


@pytest.mark.parametrize("change", [{"payload": None}, {"codec": 17}, {"codec": None}])
def test_a_row_that_is_no_pack_is_a_clear_error(change: dict[str, Any]) -> None:
    step = Entry("", 0, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "s", b"f" * 32, payload=StoredPayload(17, b"1"))
    with pytest.raises(JournalCorrupted, match="it is not a pack in a form that this version knows"):
        unpack(stored(pack([step]))._replace(**change))
