"""The first commit of an execution writes its row too.

A message that the broker delivers for the first time needs no row before its body starts: if its process dies, the
broker delivers it again. So a body that ends before its first flush costs one commit instead of two.
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from .records import OpenRequest, PayloadKind, StoredPayload
from .statements import INSERT_PAYLOAD, bound, new_values
from .tables import executions

__all__ = ["insert_and_tell", "insert_new", "insert_unless_known", "new_row"]


def new_row(pk: int, namespace: str, request: OpenRequest, lease_ms: int, steps: int = 0) -> dict[str, Any]:
    """The parameters of an insert."""
    values = {
        "pk": pk,
        "namespace": namespace,
        "id": request.id,
        "task": request.task,
        "owner": request.owner,
        "retries": request.retries,
        "replacements": request.replacements,
        "steps": steps,
        "lease": lease_ms,
        "wake": lease_ms if request.recoverable else None,
    }
    return bound(values)


#: Where an error would break the transaction (PostgreSQL), or costs more than avoiding it.
_UNLESS_KNOWN: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


@functools.cache
def _standard(*columns: str, leased: bool = True) -> sa.Insert:
    return sa.insert(executions).values(**new_values(*columns, leased=leased))


@functools.cache
def insert_unless_known(dialect: str, *columns: str, leased: bool = True) -> Any:
    """Inserts a row if there is none of this id, on PostgreSQL and SQLite.

    :param columns: those whose values differ from a running execution's.
    """
    insert = _UNLESS_KNOWN[dialect](executions).values(**new_values(*columns, leased=leased))
    return insert.on_conflict_do_nothing()


@functools.cache
def insert_and_tell(*columns: str, leased: bool = True) -> Any:
    """The same for PostgreSQL, which returns the key of a new row."""
    return insert_unless_known("postgresql", *columns, leased=leased).returning(executions.c.pk)


def insert_new(
    connection: Connection,
    row: dict[str, Any],
    envelope: StoredPayload | None,
    *columns: str,
    leased: bool = True,
) -> bool:
    """Insert an execution and its message.

    :param columns: columns in ``row`` whose values differ from a running execution's.
    :returns: False when there is one of this id; the transaction continues.
    """
    if connection.dialect.name == "postgresql":
        if connection.execute(insert_and_tell(*columns, leased=leased), row).first() is None:
            return False
    else:
        try:
            connection.execute(_standard(*columns, leased=leased), row)
        except IntegrityError:
            return False
    if envelope is not None:
        payload = {"pk": row["b_pk"], "kind": int(PayloadKind.ENVELOPE), "codec": envelope.codec, "data": envelope.data}
        connection.execute(INSERT_PAYLOAD, payload)
    return True
