"""The latest executions, by state and task: a page reads only the rows that it shows, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .records import FINAL_STATES, State
from .tables import executions

__all__ = ["count", "latest", "namespaces"]

_x = executions.c


def latest(
    connection: Connection,
    namespace: str,
    *,
    states: Sequence[State] = (),
    task: str | None = None,
    limit: int,
    before_pk: int | None = None,
    pruned: bool = False,
) -> Sequence[Any]:
    """Rows of executions, the latest first.

    :param states: if empty, any state.
    :param before_pk: continue after this one.
    :param pruned: only tombstones, the last pruned first.
    """
    beyond: list[sa.ColumnElement[bool]] = []
    if before_pk is not None and not pruned:
        beyond = [_x.pk < before_pk]
    elif before_pk is not None:
        when = connection.execute(sa.select(_x.pruned_at).where(_x.pk == before_pk)).scalar()
        if when is None:
            return ()
        beyond = [_x.pruned_at <= when, sa.or_(_x.pruned_at < when, _x.pk < before_pk)]
    parts = []
    for state in State:
        if (not states or state in states) and not (pruned and state not in FINAL_STATES):
            # One index scan for each state.
            query = _of(namespace, state, task, pruned).where(*beyond)
            parts.append(query.order_by(*_order(connection, _x, pruned)).limit(limit))
    return _together(connection, parts, lambda columns: _order(connection, columns, pruned), limit)


def count(connection: Connection, namespace: str, states: Sequence[State], most: int) -> int:
    """How many executions are in these states, counted up to ``most``. Tombstones are not."""
    total = 0
    for state in states:
        some = _of(namespace, state, None, False).with_only_columns(_x.pk).limit(most - total).subquery()
        total += connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
        if total >= most:
            break
    return total


def namespaces(connection: Connection) -> list[str]:
    """The applications that have executions here."""
    found: list[str] = []
    while True:
        query = sa.select(_x.namespace).order_by(_x.namespace).limit(1)
        one = connection.execute(query.where(_x.namespace > found[-1]) if found else query).scalar()
        if one is None:
            return found
        found.append(one)


def _of(namespace: str, state: State, task: str | None, pruned: bool) -> sa.Select[Any]:
    query = sa.select(executions).where(_x.namespace == namespace, _x.state == state.value)
    index = "ix_durable_execution_state"
    if task is not None:
        query, index = query.where(_x.task == task), "ix_durable_execution_task"
    # MariaDB may choose another index that begins with the namespace, and then sort all its rows.
    query = query.with_hint(executions, f"FORCE INDEX ({index})", "mysql")
    return query.where(_x.pruned_at.is_not(None) if pruned else _x.pruned_at.is_(None))


def _order(connection: Connection, columns: Any, pruned: bool) -> tuple[Any, ...]:
    latest_first = (columns.pk.desc(),)
    # PostgreSQL does not treat a column that is always NULL as a constant: sorting by it too lets it use the index.
    sorts = pruned or connection.dialect.name == "postgresql"
    return (columns.pruned_at.desc(), *latest_first) if sorts else latest_first


def _together(connection: Connection, parts: Sequence[sa.Select[Any]], order: Any, limit: int) -> Sequence[Any]:
    if not parts:
        return ()
    if len(parts) == 1:
        return connection.execute(parts[0]).all()
    every = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    return connection.execute(sa.select(every).order_by(*order(every.c)).limit(limit)).all()
