"""The commit that many executions share: two hundred of them need no more statements than two.

Each statement covers all of them, so that a database some milliseconds away is asked only a few times in all. A row
that somebody else has locked is left out, and gets its own commit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection

from .first_commit import insert_unless_known, new_row
from .records import Batch, Fence, PayloadKind, State
from .rows import parts, put_payload_statement
from .statements import new_values
from .tables import executions, from_now, journal, now_ms

__all__ = ["Together", "fence_all"]

_x = executions.c
_j = journal.c

#: Locks executions, to see who may write and whose cancellation was requested. The order is the same everywhere, to
#: avoid dead-locks. Rows that are missing in the answer are gone, or locked by somebody else.
_LOCK = (
    sa.select(_x.pk, _x.epoch, _x.state, _x.cancel_at)
    .where(_x.pk.in_(sa.bindparam("pks", expanding=True)))
    .order_by(_x.pk)
    .with_for_update(skip_locked=True)
)

#: The first rows of batches of unknown fate, as far as they are committed.
_PRESENT = sa.select(_j.pk, _j.generation, _j.scope, _j.position, _j.entry, _j.epoch).where(
    _j.pk.in_(sa.bindparam("pks", expanding=True)),
    _j.position.in_(sa.bindparam("positions", expanding=True)),
)


@functools.cache
def _prolonging(kinds: int) -> sa.Update:
    """Prolongs this many leases of executions with different numbers of finished steps."""
    finished: list[Any] = [
        (_x.pk.in_(sa.bindparam(f"b_{n}", expanding=True)), sa.bindparam(f"b_steps{n}")) for n in range(kinds)
    ]
    return (
        sa.update(executions)
        .where(_x.pk.in_(sa.bindparam("b_pks", expanding=True)))
        .values(
            lease_until=from_now("b_lease"),
            steps=_x.steps + sa.cast(sa.case(*finished, else_=0), sa.Integer),
            updated_at=now_ms(),
        )
    )


class Together(NamedTuple):
    """Batches by what is to be done with their entries."""

    #: These are to be written.
    held: list[Batch]
    #: Their executions belong to other owners.
    lost: set[Fence]
    #: Their cancellation was requested; they are written anyway.
    cancelled: set[Fence]
    #: Locked by somebody else: each is to be tried alone.
    busy: set[Fence]


def fence_all(connection: Connection, batches: Sequence[Batch], lease_ms: int, *, again: bool) -> Together:
    """Verify the right to write of several executions, and prolong it; those that have no row get theirs.

    :param again: any batch may be committed already, not only those marked so.
    """
    born = [batch for batch in batches if batch.birth is not None]
    if born:
        connection.execute(_insert(connection.dialect.name), [_new_row(batch, lease_ms) for batch in born])
    rows = {row.pk: row for row in connection.execute(_LOCK, {"pks": [batch.fence.pk for batch in batches]})}
    unsure = [batch for batch in batches if (again or batch.again) and batch.entries and batch.fence.pk in rows]
    present = _present(connection, unsure) if unsure else ()
    result = Together([], set(), set(), set())
    for batch in batches:
        row = rows.get(batch.fence.pk)
        if row is None:
            result.busy.add(batch.fence)
        elif _first(batch) in present:
            continue
        elif (row.epoch, row.state) != (batch.fence.epoch, State.RUNNING.value):
            result.lost.add(batch.fence)
        else:
            result.held.append(batch)
            if row.cancel_at is not None:
                result.cancelled.add(batch.fence)
    if result.held:
        _prolong(connection, result.held, lease_ms)
        _write_messages(connection, result.held)
    return result


def _new_row(batch: Batch, lease_ms: int) -> dict[str, Any]:
    assert batch.birth is not None
    return new_row(batch.fence.pk, batch.birth.namespace, batch.birth.request, lease_ms)


def _write_messages(connection: Connection, batches: Sequence[Batch]) -> None:
    """Write the messages of new executions, again if an earlier try did."""
    rows = [
        {"pk": batch.fence.pk, "kind": int(PayloadKind.ENVELOPE), **batch.birth.request.envelope()._asdict()}
        for batch in batches
        if batch.birth is not None
    ]
    for part in parts(rows, "data"):
        connection.execute(put_payload_statement(connection.dialect.name), part)


@functools.cache
def _insert(dialect: str) -> Any:
    if dialect in ("postgresql", "sqlite"):
        return insert_unless_known(dialect)
    # Not INSERT IGNORE, which would truncate values that do not fit.
    return mysql.insert(executions).values(**new_values()).on_duplicate_key_update(pk=_x.pk)


def _first(batch: Batch) -> tuple[Any, ...] | None:
    """The row by which a batch is recognised."""
    if not batch.entries:
        return None
    first = batch.entries[0]
    return (batch.fence.pk, batch.generation, first.scope, first.position, first.entry, batch.fence.epoch)


def _present(connection: Connection, batches: Sequence[Batch]) -> set[tuple[Any, ...]]:
    values = {
        "pks": [batch.fence.pk for batch in batches],
        "positions": list({batch.entries[0].position for batch in batches}),
    }
    return {tuple(row) for row in connection.execute(_PRESENT, values)}


def _prolong(connection: Connection, batches: Sequence[Batch], lease_ms: int) -> None:
    steps: dict[Fence, int] = {}
    for batch in batches:
        steps[batch.fence] = steps.get(batch.fence, 0) + batch.steps
    by_steps: dict[int, list[int]] = {}
    for fence, number in steps.items():
        by_steps.setdefault(number, []).append(fence.pk)
    values: dict[str, Any] = {"b_pks": [fence.pk for fence in steps], "b_lease": lease_ms}
    for n, (number, pks) in enumerate(by_steps.items()):
        values |= {f"b_{n}": pks, f"b_steps{n}": number}
    connection.execute(_prolonging(len(by_steps)), values)
