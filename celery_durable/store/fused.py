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

from .direct import Direct
from .records import Batch, Entry, PayloadKind, StoredPayload
from .statements import FENCE, INSERT, let_go
from .tables import executions, journal, now_ms, payloads

__all__ = ["append", "can_say", "open_new", "settle"]

#: What all entries of a batch have in common, and what each has for itself.
_SHARED = ("pk", "generation", "epoch", "at")
_OWN = [column for column in journal.columns if column.name not in _SHARED]
#: A type with a length would cut what is too long, and JSON has no bytes.
_TEXTUAL = (sa.String, sa.LargeBinary)


def can_say(batch: Batch) -> bool:
    """False for what takes more than entries."""
    return not any(entry.promise for entry in batch.entries)


def append(direct: Direct, batch: Batch, lease_ms: int) -> bool:
    """Write entries under their fence, and prolong the lease; False when the fence did not hold."""
    pk, epoch = batch.fence
    bound = {"b_pk": pk, "b_epoch": epoch, "b_lease": lease_ms, "b_steps": batch.steps, **_entries(batch)}
    return bool(direct.scalar(_append(bool(batch.entries)), bound))


def settle(
    direct: Direct,
    batch: Batch,
    columns: tuple[str, ...],
    bound: dict[str, Any],
    kind: PayloadKind,
    payload: StoredPayload | None,
) -> bool:
    """Write the last entries, a payload and a new state under the fence; False when it did not hold.

    :param columns: the parameters of :func:`~.statements.let_go`.
    """
    if payload is not None:
        bound = {**bound, "p_kind": int(kind), "p_codec": payload.codec, "p_data": payload.data}
    statement = _settle(columns, bool(batch.entries), payload is not None)
    return bool(direct.scalar(statement, bound | _entries(batch)))


def open_new(direct: Direct, values: dict[str, Any], envelope: StoredPayload) -> None:
    """Insert an execution with its envelope; nobody waits for the disk.

    :raises IntegrityError: when there is one of this id.
    """
    codec, data = envelope
    direct.scalar(_open(), {**values, "p_codec": codec, "p_data": data})


# -- the statements -----------------------------------------------------------------------------------------------


@functools.cache
def _append(with_entries: bool) -> sa.Select[Any]:
    return _under(FENCE, with_entries, False)


@functools.cache
def _settle(columns: tuple[str, ...], with_entries: bool, with_payload: bool) -> sa.Select[Any]:
    return _under(let_go(*columns), with_entries, with_payload)


@functools.cache
def _open() -> Any:
    new = INSERT.returning(executions.c.pk).cte("new")
    kind = sa.literal(int(PayloadKind.ENVELOPE), sa.SmallInteger)
    # The setting is the transaction's, which is this statement.
    relaxed = sa.func.set_config("synchronous_commit", "off", True)
    return _insert_payload(new, kind).returning(relaxed)


def _under(fence: sa.Update, with_entries: bool, with_payload: bool) -> sa.Select[Any]:
    """What is written if, and only if, the fence holds; the answer is the number of rows that it let through."""
    held = fence.returning(executions.c.pk).cte("held")
    parts = []
    if with_entries:
        parts.append(_insert_entries(held).cte("written"))
    if with_payload:
        insert = _insert_payload(held, sa.bindparam("p_kind", type_=sa.SmallInteger))
        values = {"codec": insert.excluded.codec, "data": insert.excluded.data}
        replace = insert.on_conflict_do_update(index_elements=list(payloads.primary_key), set_=values)
        parts.append(replace.cte("stored"))
    return sa.select(sa.func.count()).select_from(held).add_cte(*parts)


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
    text = json.dumps([_row(entry) for entry in batch.entries])
    return {"e_generation": batch.generation, "e_epoch": batch.fence.epoch, "e_entries": text}


def _row(entry: Entry) -> dict[str, Any]:
    codec, data = entry.payload or (None, None)
    return {
        "scope": entry.scope,
        "position": entry.position,
        "entry": entry.entry,
        "kind": int(entry.kind),
        "effect": None if entry.effect is None else int(entry.effect),
        "name": entry.name,
        "fingerprint": _text(entry.fingerprint),
        "key": _text(entry.key),
        "attempt": entry.attempt,
        "duration_us": entry.duration_us,
        "codec": codec,
        "payload": _text(data),
    }


def _text(data: bytes | None) -> str | None:
    return None if data is None else b2a_base64(data, newline=False).decode("ascii")


def _insert_payload(source: sa.CTE, kind: sa.ColumnElement[int]) -> postgresql.Insert:
    codec = sa.bindparam("p_codec", type_=sa.SmallInteger)
    data = sa.bindparam("p_data", type_=sa.LargeBinary)
    selected = sa.select(source.c.pk, kind, codec, data)
    return postgresql.insert(payloads).from_select(["pk", "kind", "codec", "data"], selected)
