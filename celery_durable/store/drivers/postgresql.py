"""PostgreSQL can run a whole transaction in one statement: one round trip instead of four or five.

The statements do the same as on the other databases. They are only for the usual case: one execution, and no doubt
about an earlier try.
"""

from __future__ import annotations

import functools
import json
from binascii import b2a_base64
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ..first_commit import insert_and_tell
from ..records import Batch, Entry, Journaled, PayloadKind, StoredPayload
from ..statements import FENCE, KNOWN, SEGMENT, let_go
from ..tables import executions, journal, now_ms, payloads
from .base import LastCommit, to_journaled
from .libpq import Libpq

__all__ = ["PostgreSQL"]

#: Columns that all entries of a batch have in common, and those that differ.
_SHARED = ("pk", "generation", "epoch", "at")
_OWN = [column for column in journal.columns if column.name not in _SHARED]
#: Types to be sent as plain text: a type with a length would truncate values, and JSON has no bytes.
_TEXTUAL = (sa.String, sa.LargeBinary)


class PostgreSQL:
    """The usual transactions of PostgreSQL; see :class:`~.base.Driver`."""

    def __init__(self, direct: Libpq) -> None:
        self._direct = direct

    def known(self, namespace: str, execution_id: str) -> bool:
        return self._direct.says(KNOWN, {"namespace": namespace, "id": execution_id})

    def segment(self, place: dict[str, Any]) -> list[Journaled]:
        return list(map(to_journaled, self._direct.rows(SEGMENT, place)))

    def append(self, batch: Batch, lease_ms: int) -> bool:
        pk, epoch = batch.fence
        bound = {"b_pk": pk, "b_epoch": epoch, "b_lease": lease_ms, "b_steps": batch.steps, **_entries(batch)}
        return self._direct.says(_append(_size(batch)), bound)

    def begin(self, batch: Batch, row: dict[str, Any], envelope: StoredPayload) -> bool:
        return self._direct.says(_begin(_size(batch)), row | _entries(batch) | _message(envelope))

    def open_new(self, row: dict[str, Any], envelope: StoredPayload) -> bool:
        return self._direct.says(_open(), row | _message(envelope))

    def settle(self, last: LastCommit) -> bool:
        batch = last.batch
        bound = last.bound | _entries(batch)
        if last.envelope is not None:
            bound |= _message(last.envelope)
        if last.payload is not None:
            bound |= {"p_kind": int(last.kind), "p_codec": last.payload.codec, "p_data": last.payload.data}
        parts = _size(batch), last.envelope is not None, last.payload is not None
        if batch.birth is None:
            return self._direct.says(_settle(last.columns, last.waits, *parts), bound)
        return self._direct.says(_begin_and_settle(last.columns, *parts), bound)

    def close(self) -> None:
        self._direct.close()


# -- the statements -----------------------------------------------------------------------------------------------


def _size(batch: Batch) -> int:
    """For how many entries a statement is made: 0, 1, or (2) any number."""
    return min(len(batch.entries), 2)


@functools.cache
def _append(size: int) -> sa.Select[Any]:
    return _under(FENCE.returning(executions.c.pk), size)


@functools.cache
def _begin(size: int) -> sa.Select[Any]:
    return _under(insert_and_tell(), size, with_envelope=True)


@functools.cache
def _settle(
    columns: tuple[str, ...], waits: bool, size: int, with_envelope: bool, with_payload: bool
) -> sa.Select[Any]:
    return _under(let_go(*columns, waits=waits).returning(executions.c.pk), size, with_envelope, with_payload)


@functools.cache
def _begin_and_settle(columns: tuple[str, ...], size: int, with_envelope: bool, with_payload: bool) -> sa.Select[Any]:
    return _under(insert_and_tell(*columns, leased=False), size, with_envelope, with_payload)


@functools.cache
def _open() -> Any:
    # The setting is only for the transaction, which is this statement.
    relaxed = sa.func.set_config("synchronous_commit", "off", True)
    return _insert_payload(insert_and_tell().cte("held"), "m").returning(relaxed)


def _under(fence: Any, size: int, with_envelope: bool = False, with_payload: bool = False) -> sa.Select[Any]:
    """A statement that writes if, and only if, the fence holds; then the answer is a row."""
    held = fence.cte("held")
    parts = []
    if with_envelope:
        parts.append(_insert_payload(held, "m").cte("kept"))
    if size:
        insert = _insert_entry(held) if size == 1 else _insert_entries(held)
        parts.append(insert.cte("written"))
    if with_payload:
        insert = _insert_payload(held, "p")
        values = {"codec": insert.excluded.codec, "data": insert.excluded.data}
        replace = insert.on_conflict_do_update(index_elements=list(payloads.primary_key), set_=values)
        parts.append(replace.cte("stored"))
    return sa.select(held.c.pk).add_cte(*parts)


def _into_journal(source: sa.Select[Any]) -> sa.Insert:
    return sa.insert(journal).from_select([*_SHARED, *(c.name for c in _OWN)], source)


def _shared(held: sa.CTE) -> list[sa.ColumnElement[Any]]:
    generation, epoch = (sa.bindparam(f"e_{name}", type_=sa.Integer) for name in ("generation", "epoch"))
    return [held.c.pk, generation, epoch, now_ms()]


def _insert_entry(held: sa.CTE) -> sa.Insert:
    """Insert a single entry: frequent enough (a guarded step commits two) for a statement without JSON."""
    values = [sa.cast(sa.bindparam(f"e_{c.name}", type_=c.type), _unbounded(c)) for c in _OWN]
    return _into_journal(sa.select(*_shared(held), *values).select_from(held))


def _unbounded(column: sa.Column[Any]) -> Any:
    return sa.Text() if isinstance(column.type, sa.String) else column.type


def _insert_entries(held: sa.CTE) -> sa.Insert:
    """Insert entries from one JSON text: every driver knows text, and an array for each column costs more."""
    columns = [sa.column(c.name, sa.Text() if isinstance(c.type, _TEXTUAL) else c.type) for c in _OWN]
    given = sa.cast(sa.bindparam("e_entries", type_=sa.Text), postgresql.JSON)
    entries = sa.func.json_to_recordset(given).table_valued(*columns, name="entries").render_derived(with_types=True)
    values = [
        sa.func.decode(entries.c[c.name], "base64") if isinstance(c.type, sa.LargeBinary) else entries.c[c.name]
        for c in _OWN
    ]
    return _into_journal(sa.select(*_shared(held), *values).select_from(held.join(entries, sa.true())))


def _entries(batch: Batch) -> dict[str, Any]:
    if not batch.entries:
        return {}
    if len(batch.entries) == 1:
        return _entry(batch, batch.entries[0])
    text = _dump([_row(entry) for entry in batch.entries])
    return {"e_generation": batch.generation, "e_epoch": batch.fence.epoch, "e_entries": text}


def _entry(batch: Batch, entry: Entry) -> dict[str, Any]:
    codec, payload = entry.payload or (None, None)
    return {
        "e_generation": batch.generation,
        "e_epoch": batch.fence.epoch,
        "e_scope": entry.scope,
        "e_position": entry.position,
        "e_entry": entry.entry,
        "e_kind": int(entry.kind),
        "e_effect": None if entry.effect is None else int(entry.effect),
        "e_name": entry.name,
        "e_fingerprint": entry.fingerprint,
        "e_key": entry.key,
        "e_attempt": entry.attempt,
        "e_duration_us": entry.duration_us,
        "e_codec": codec,
        "e_payload": payload,
    }


def _row(entry: Entry) -> dict[str, Any]:
    # Columns that are left out are NULL.
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
