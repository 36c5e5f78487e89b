"""The statements of every delivery. Building one costs more than running it, so they are built once."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from .records import FOUND_BY_PLACE, EntryKind, Journaled, State
from .tables import executions, from_now, journal, now_ms, payloads

__all__ = [
    "BEGUN",
    "BY_ID",
    "BY_PK",
    "ENTRY_COLUMNS",
    "FENCE",
    "FENCE_CANCELLED",
    "INSERT_PAYLOAD",
    "KNOWN",
    "SEGMENT",
    "UNTOLD",
    "bound",
    "grant",
    "let_go",
    "new_values",
]

_x = executions.c
_j = journal.c

#: A row by the id that users know, locked, with the database's clock to check its lease.
BY_ID = (
    sa.select(executions, now_ms().label("now"))
    .where(_x.namespace == sa.bindparam("namespace"), _x.id == sa.bindparam("id"))
    .with_for_update()
)
#: The same by its primary key.
BY_PK = sa.select(executions, now_ms().label("now")).where(_x.pk == sa.bindparam("pk")).with_for_update()
#: Whether there is a row of an id.
KNOWN = sa.select(_x.pk).where(_x.namespace == sa.bindparam("namespace"), _x.id == sa.bindparam("id"))


def _constant(value: int | str) -> sa.ColumnElement[Any]:
    """A value in the text of the statement, to save a parameter."""
    return sa.literal_column(repr(value))


_GIVEN = ("pk", "namespace", "id", "task", "owner", "retries", "replacements", "steps")


def new_values(*columns: str, leased: bool = True) -> dict[str, Any]:
    """The values for inserting an execution: a running one, except for these columns.

    :param leased: False for one that has given up its lease already.
    """
    return {
        "lease_until": from_now("b_lease") if leased else _constant(0),
        "wake_at": from_now("b_wake"),
        "created_at": now_ms(),
        "updated_at": now_ms(),
        "state": _constant(State.RUNNING.value),
        **{name: _constant(1) for name in ("epoch", "generation", "base_generation")},
        **{name: _constant(0) for name in ("attempts", "sends")},
        **{name: sa.bindparam(f"b_{name}") for name in (*_GIVEN, *columns)},
    }


#: An entry, in the order of :class:`~.records.Journaled`.
ENTRY_COLUMNS = tuple(_j[name] for name in Journaled._fields)
#: One segment of a scope, in the order of the body.
SEGMENT = (
    sa.select(*ENTRY_COLUMNS)
    .where(
        _j.pk == sa.bindparam("pk"),
        _j.generation == sa.bindparam("generation"),
        _j.scope == sa.bindparam("scope"),
        _j.position >= sa.bindparam("position"),
    )
    .order_by(_j.position, _j.entry)
    .limit(sa.bindparam("rows"))
)

_later = journal.alias("later")


def _last_of_repeatable(kind: EntryKind) -> sa.ColumnElement[bool]:
    """The last entry of a step that may be repeated, if it is of this kind."""
    same_place = (_later.c[name] == _j[name] for name in ("pk", "generation", "scope", "position"))
    return sa.and_(
        _j.kind == int(kind),
        _j.effect.in_([int(effect) for effect in FOUND_BY_PLACE]),
        ~sa.exists().where(*same_place, _later.c.entry > _j.entry),
    )


#: The open intent of a step that may be repeated: see :func:`~.records.runs_again`.
BEGUN = _last_of_repeatable(EntryKind.INTENT)
#: The audit of such a step: it ran again to find out whether there is something to undo, and did not tell.
UNTOLD = _last_of_repeatable(EntryKind.AUDIT)

#: Writes a payload of a new execution.
INSERT_PAYLOAD = sa.insert(payloads)

#: Verifies the right to write and prolongs it; the row is locked until the entries are committed.
FENCE_CANCELLED = (
    sa.update(executions)
    .where(
        _x.pk == sa.bindparam("b_pk"), _x.epoch == sa.bindparam("b_epoch"), _x.state == _constant(State.RUNNING.value)
    )
    .values(
        lease_until=from_now("b_lease"),
        steps=_x.steps + sa.bindparam("b_steps", type_=sa.Integer),
        updated_at=now_ms(),
    )
)
#: The same, unless the cancellation was requested.
FENCE = FENCE_CANCELLED.where(_x.cancel_at.is_(None))


@functools.cache
def grant(*columns: str) -> sa.Update:
    """Grants the lease of a locked row, and sets these columns."""
    return (
        sa.update(executions)
        .where(_x.pk == sa.bindparam("b_pk"))
        .values(
            lease_until=from_now("b_lease"),
            wake_at=from_now("b_wake"),
            updated_at=now_ms(),
            **{name: sa.bindparam(f"b_{name}") for name in columns},
        )
    )


@functools.cache
def let_go(*columns: str, waits: bool = False) -> sa.Update:
    """Ends a lease under its fence, and sets these columns.

    :param waits: it continues by itself later, or at once if its cancellation was requested.
    """
    wake: sa.ColumnElement[Any] = from_now("b_wake")
    if waits:
        wake = sa.case((_x.cancel_at.is_not(None), now_ms()), else_=wake)
    return (
        sa.update(executions)
        .where(
            _x.pk == sa.bindparam("b_pk"),
            _x.epoch == sa.bindparam("b_held"),
            _x.state == _constant(State.RUNNING.value),
        )
        .values(
            steps=_x.steps + sa.bindparam("b_steps", type_=sa.Integer),
            lease_until=_constant(0),
            wake_at=wake,
            updated_at=now_ms(),
            **{name: sa.bindparam(f"b_{name}") for name in columns},
        )
    )


def bound(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the names that they have in these statements."""
    return {f"b_{name}": value for name, value in values.items()}
