"""What a step is made of, each part on its own: identity, encoding, the writer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery_durable.codec import Codec
from celery_durable.effects import Effect
from celery_durable.identity import fingerprint, idempotency_key
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
from celery_durable.store.journal import Journal
from celery_durable.store.records import EffectCode, Entry, EntryKind, Opened, OpenRequest, StoredPayload

from .bodies import Bodies
from .harness import Case, Note

__all__ = ["APPEND", "ENTRIES", "cases"]

APPEND = "append to the writer"
ENTRIES = "appended and committed"

#: An order as many people's look.
_ORDER = {"id": 4711, "email": "ann@example.org", "lines": [{"sku": "A-1", "count": 2, "price": "19.90"}] * 5}


def _repeated(name: str, work: Callable[[], Any], times: int) -> Case:
    def turn(note: Note) -> None:
        begin = time.perf_counter()
        for _ in range(times):
            work()
        note(name, (time.perf_counter() - begin) / times)

    return Case({name: "s"}, turn)


def _computed(times: int) -> list[Case]:
    codec = Codec()
    effect = Effect.IDEMPOTENT.value
    print_of_number = fingerprint("charge", effect, (7,), {})
    long = "x" * 100_000
    return [
        _repeated("fingerprint of a number", lambda: fingerprint("charge", effect, (7,), {}), times),
        _repeated("fingerprint of an order", lambda: fingerprint("charge", effect, (_ORDER,), {}), times),
        _repeated("idempotency key", lambda: idempotency_key("shop", "order-7", "charge", print_of_number, 0), times),
        _repeated("encode and decode a number", lambda: codec.roundtrip(7), times),
        _repeated("encode and decode an order", lambda: codec.roundtrip(_ORDER), times),
        _repeated("encode and decode 1 KB of text", lambda: codec.roundtrip("x" * 1000), times),
        _repeated("encode and decode 100 KB of text", lambda: codec.roundtrip(long), max(1, times // 50)),
    ]


def _writer(bodies: Bodies, entries: int) -> Case:
    """A writer of its own, whose timer does not interfere."""
    runtime = bodies.runtime
    journal = Journal(runtime.database, lease_ms=runtime.settings.lease_ms)
    writer = JournalWriter(journal, flush_interval=5.0, ack_timeout=30.0)
    payload = StoredPayload(*runtime.codec.encode(7))
    print_of_number = fingerprint("double", Effect.IDEMPOTENT.value, (7,), {})

    def entry(position: int) -> Entry:
        kind, effect = EntryKind.RESULT, EffectCode.IDEMPOTENT
        return Entry("", position, 0, kind, effect, "double", print_of_number, payload=payload)

    def turn(note: Note) -> None:
        request = OpenRequest(bodies.new_id(), "body", runtime.new_owner(), 0, lambda: payload)
        opened = runtime.ownership.open(request)
        assert isinstance(opened, Opened)
        buffer = ExecutionBuffer(opened.fence, opened.generation, time.monotonic())
        ready = [entry(position) for position in range(entries)]
        begin = time.perf_counter()
        for item in ready:
            writer.append(buffer, item, finishes=True)
        appended = time.perf_counter()
        writer.flush(buffer)
        note(APPEND, (appended - begin) / entries)
        note(ENTRIES, entries / (time.perf_counter() - begin))
        runtime.ownership.release(writer.drain(buffer), request.owner)

    return Case({APPEND: "s", ENTRIES: "1/s"}, turn)


def cases(bodies: Bodies, *, quick: bool) -> list[Case]:
    """Part of the suite *steps*."""
    # Of more than some thousand entries at once the writer commits the first before it takes the others.
    return [*_computed(200 if quick else 5000), _writer(bodies, 500 if quick else 4000)]
