"""PostgreSQL can be told a whole transaction in one statement: one journey to the server instead of four or five.

It is told the same as the other databases, and in the same words. Only the usual case goes this way: one execution, and
no doubt about an earlier try.
"""

from __future__ import annotations

import functools
import json
from binascii import b2a_base64
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from .birth import insert_unless_known
from .direct import Direct
from .records import Batch, Entry, PayloadKind, StoredPayload
from .statements import FENCE, let_go
from .tables import executions, journal, now_ms, payloads

__all__ = ["append", "begin", "can_say", "open_new", "settle"]

#: What all entries of a batch have in common, and what each has for itself.
_SHARED = ("pk", "generation", "epoch", "at")
_OWN = [column for column in journal.columns if column.name not in _SHARED]
#: A type with a length would cut what is too long, and JSON has no bytes.
_TEXTUAL = (sa.String, sa.LargeBinary)


def can_say(batch: Batch) -> bool:
    """False for what takes more than entries."""
    return not any(entry.promise or entry.offspring for entry in batch.entries)


def append(direct: Direct, batch: Batch, lease_ms: int) -> bool:
    """Write entries under their fence, and prolong the lease; False when the fence did not hold."""
    pk, epoch = batch.fence
    bound = {"b_pk": pk, "b_epoch": epoch, "b_lease": lease_ms, "b_steps": batch.steps, **_entries(batch)}
    return direct.says(_append(bool(batch.entries)), bound)


def begin(direct: Direct, batch: Batch, row: dict[str, Any], envelope: StoredPayload) -> bool:
    """Insert an execution with its first entries; False when there is one of this id."""
    return direct.says(_begin(bool(batch.entries)), row | _entries(batch) | _message(envelope))


def settle(
    direct: Direct,
    batch: Batch,
    columns: tuple[str, ...],
    waits: bool,
    bound: dict[str, Any],
    envelope: StoredPayload | None,
    kind: PayloadKind,
    payload: StoredPayload | None,
) -> bool:
    """Write the last entries, a payload and a new state under the fence; False when it did not hold.

    :param columns, waits: the parameters of :func:`~.statements.let_go`, or of an insert where it is
        also the first commit.
    :param envelope: the message, where it is the first commit.
    """
    bound = bound | _entries(batch)
    if envelope is not None:
        bound |= _message(envelope)
    if payload is not None:
        bound |= {"p_kind": int(kind), "p_codec": payload.codec, "p_data": payload.data}
    parts = bool(batch.entries), envelope is not None, payload is not None
    if batch.birth is None:
        return direct.says(_settle(columns, waits, *parts), bound)
    return direct.says(_begin_and_settle(columns, *parts), bound)


def open_new(direct: Direct, row: dict[str, Any], envelope: StoredPayload) -> bool:
    """Insert an execution with its envelope; nobody waits for the disk. False when there is one of this id."""
    return direct.says(_open(), row | _message(envelope))


# -- the statements -----------------------------------------------------------------------------------------------


@functools.cache
def _append(with_entries: bool) -> sa.Select[Any]:
    return _under(FENCE.returning(executions.c.pk), with_entries)


@functools.cache
def _begin(with_entries: bool) -> sa.Select[Any]:
    return _under(insert_unless_known(), with_entries, with_envelope=True)


@functools.cache
def _settle(
    columns: tuple[str, ...], waits: bool, with_entries: bool, with_envelope: bool, with_payload: bool
) -> sa.Select[Any]:
    return _under(let_go(*columns, waits=waits).returning(executions.c.pk), with_entries, with_envelope, with_payload)


@functools.cache
def _begin_and_settle(
    columns: tuple[str, ...], with_entries: bool, with_envelope: bool, with_payload: bool
) -> sa.Select[Any]:
    return _under(insert_unless_known(*columns, leased=False), with_entries, with_envelope, with_payload)


@functools.cache
def _open() -> Any:
    # The setting is the transaction's, which is this statement.
    relaxed = sa.func.set_config("synchronous_commit", "off", True)
    return _insert_payload(insert_unless_known().cte("held"), "m").returning(relaxed)


def _under(fence: Any, with_entries: bool, with_envelope: bool = False, with_payload: bool = False) -> sa.Select[Any]:
    """What is written if, and only if, the fence holds; the answer is a row then."""
    held = fence.cte("held")
    parts = []
    if with_envelope:
        parts.append(_insert_payload(held, "m").cte("kept"))
    if with_entries:
        parts.append(_insert_entries(held).cte("written"))
    if with_payload:
        insert = _insert_payload(held, "p")
        values = {"codec": insert.excluded.codec, "data": insert.excluded.data}
        replace = insert.on_conflict_do_update(index_elements=list(payloads.primary_key), set_=values)
        parts.append(replace.cte("stored"))
    return sa.select(held.c.pk).add_cte(*parts)


def _insert_entries(held: sa.CTE) -> sa.Insert:
    """The entries come as one JSON text: every driver knows text, and an array for each column costs more."""
    columns = [sa.column(c.name, sa.Text() if isinstance(c.type, _TEXTUAL) else c.type) for c in _OWN]
    given = sa.cast(sa.bindparam("e_entries", type_=sa.Text), postgresql.JSON)
    entries = sa.func.json_to_recordset(given).table_valued(*columns, name="entries").render_derived(with_types=True)
    values = [
        sa.func.decode(entries.c[c.name], "base64") if isinstance(c.type, sa.LargeBinary) else entries.c[c.name]
        for c in _OWN
    ]
    generation, epoch = (sa.bindparam(f"e_{name}", type_=sa.Integer) for name in ("generation", "epoch"))
    source = sa.select(held.c.pk, generation, epoch, now_ms(), *values).select_from(held.join(entries, sa.true()))
    return sa.insert(journal).from_select([*_SHARED, *(c.name for c in _OWN)], source)


def _entries(batch: Batch) -> dict[str, Any]:
    if not batch.entries:
        return {}
    text = _dump([_row(entry) for entry in batch.entries])
    return {"e_generation": batch.generation, "e_epoch": batch.fence.epoch, "e_entries": text}


def _row(entry: Entry) -> dict[str, Any]:
    # What is not said is NULL.
    row: dict[str, Any] = {
        "scope": entry.scope,
        "position": entry.position,
        "entry": entry.entry,
        "kind": entry.kind,
        "name": entry.name,
        "attempt": entry.attempt,
    }
    if entry.effect is not None:
        row["effect"] = entry.effect
    if entry.fingerprint is not None:
        row["fingerprint"] = _text(entry.fingerprint)
    if entry.key is not None:
        row["key"] = _text(entry.key)
    if entry.duration_us is not None:
        row["duration_us"] = entry.duration_us
    if entry.payload is not None:
        row["codec"] = entry.payload.codec
        row["payload"] = _text(entry.payload.data)
    return row


def _text(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


_dump = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


def _insert_payload(source: sa.CTE, prefix: str) -> postgresql.Insert:
    names = ("kind", "codec", "data")
    given = [sa.bindparam(f"{prefix}_{name}", type_=payloads.c[name].type) for name in names]
    return postgresql.insert(payloads).from_select(["pk", *names], sa.select(source.c.pk, *given))


def _message(envelope: StoredPayload) -> dict[str, Any]:
    return {"m_kind": int(PayloadKind.ENVELOPE), "m_codec": envelope.codec, "m_data": envelope.data}
