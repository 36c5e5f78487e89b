"""Copies the beginning of one execution's journal to another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celery_durable.errors import WrongState

from .records import META, SHARED_AT, EntryKind, Execution, Journaled, PromiseState
from .tables import executions, journal, now_ms, promises

__all__ = ["BRINGING", "Prefix", "copy_prefix", "keep_prefix"]

_x = executions.c
_j = journal.c
_p = promises.c

#: Scopes, or promises, named in one statement.
_SCOPES = 200
#: Entries that contain ids of rows in the table of promises.
BRINGING = frozenset({EntryKind.CALL, EntryKind.PROMISE})
#: Columns that are copied unchanged.
_SAME = [c.name for c in journal.columns if c.name not in ("pk", "generation", "epoch")]
#: Epoch of the copied entries: the first owner of the new execution has the second epoch.
_EPOCH = 1


class Prefix(NamedTuple):
    """The beginning that two executions share."""

    generation: int
    #: Everything in the body before this position, with all branches that begin there.
    position: int
    #: The scopes of these branches, and those that belong to no position.
    scopes: Sequence[str]
    #: How many steps these are.
    steps: int
    #: Position of a checkpoint that reaches beyond ``position``.
    cut: int | None
    #: Rows that replace that checkpoint, and the entries with ids of promises and children.
    instead: Sequence[Journaled]
    #: Ids of promises and children in the old journal -> in the new one.
    promised: Mapping[str, str]


#: Not the marks of the saga: the new execution writes its own.
_SHARED = sa.or_(_j.scope != META, _j.position > 0)


def copy_prefix(connection: Connection, source: Execution, prefix: Prefix, pk: int) -> None:
    """Give a new execution, which has just been inserted, the beginning of another one's journal.

    :param source: as it was when the prefix was made.
    :raises WrongState: when it has changed since.
    """
    now = connection.execute(
        sa.select(_x.epoch, _x.state, _x.generation, _x.pruned_at).where(_x.pk == source.pk).with_for_update()
    ).first()
    then = (source.epoch, source.state.value, source.generation, source.pruned_at)
    if now is None or tuple(now) != then:
        raise WrongState(f"execution {source.id} has just changed; look at it, and try again.")
    if not prefix.position:
        return
    connection.execute(sa.update(executions).where(_x.pk == pk).values(epoch=_EPOCH, steps=prefix.steps))
    body = sa.and_(_j.scope == "", _j.position < prefix.position)
    if prefix.cut is not None:
        body = sa.and_(body, sa.or_(_j.position != prefix.cut, _j.kind != int(EntryKind.CHECKPOINT)))
    conditions = [body]
    for start in range(0, len(prefix.scopes), _SCOPES):
        conditions.append(_j.scope.in_(prefix.scopes[start : start + _SCOPES]))  # noqa: PERF401
    for condition in conditions:
        own = (_SHARED, _j.kind.not_in([int(kind) for kind in BRINGING]))
        _copy(connection, (source.pk, prefix.generation), (pk, 1), condition, *own)
    if prefix.instead:
        same = [{**row._asdict(), "pk": pk, "generation": 1, "epoch": _EPOCH} for row in prefix.instead]
        connection.execute(sa.insert(journal), same)
    _copy_promises(connection, source, prefix.promised, pk)


def keep_prefix(connection: Connection, pk: int, generation: int, position: int) -> None:
    """Begin a generation of a rerun, whose body starts again, with the shared prefix.

    :param generation: the new one.
    :param position: where the prefix ends.
    """
    last = (_j.pk == pk, _j.generation == generation - 1)
    scopes = connection.execute(sa.select(_j.scope).where(*last, _j.scope != "").distinct()).scalars()
    taken = sorted(scope for scope in scopes if scope[0] != "#" and int(scope.partition(".")[0]) < position)
    #: Patches that were taken in the prefix; and the entry that marks it as shared.
    said = sa.and_(_j.scope == META, _j.epoch == _EPOCH, sa.or_(_j.position > 0, _j.entry == SHARED_AT))
    conditions = [sa.and_(_j.scope == "", _j.position < position), said]
    for start in range(0, len(taken), _SCOPES):
        conditions.append(_j.scope.in_(taken[start : start + _SCOPES]))  # noqa: PERF401
    for condition in conditions:
        _copy(connection, (pk, generation - 1), (pk, generation), condition)


def _copy(connection: Connection, source: tuple[int, int], to: tuple[int, int], *conditions: Any) -> None:
    """Copy entries from one journal (key of its execution, generation) to another."""
    rows = sa.select(
        sa.literal(to[0], sa.BigInteger),
        sa.literal(to[1], sa.Integer),
        sa.literal(_EPOCH, sa.Integer),
        *(_j[name] for name in _SAME),
    ).where(_j.pk == source[0], _j.generation == source[1], *conditions)
    connection.execute(sa.insert(journal).from_select(["pk", "generation", "epoch", *_SAME], rows))


def _copy_promises(connection: Connection, source: Execution, promised: Mapping[str, str], pk: int) -> None:
    """Copy promises in their present state, and the outcomes of children, because the old rows may be pruned."""
    old = list(promised)
    for start in range(0, len(old), _SCOPES):
        query = sa.select(promises, now_ms().label("now")).where(_p.id.in_(old[start : start + _SCOPES]))
        rows = [dict(row._mapping) for row in connection.execute(query)]
        new = [_shared(row) if row["token_hash"] else _ended(row, source) for row in rows]
        if new:
            connection.execute(sa.insert(promises), [{**row, "id": promised[row["id"]], "pk": pk} for row in new])


def _shared(row: dict[str, Any]) -> dict[str, Any]:
    """A row that shares a promise whose token was given away: both are settled together from now on.

    Nobody can settle it at this moment: that needs the lock of its execution, which the caller holds.
    """
    del row["now"]
    return row | {"known_as": row["known_as"] or row["id"], "awaited": None, "needed": None, "timer_at": None}


def _ended(row: dict[str, Any], source: Execution) -> dict[str, Any]:
    """A child's promise, settled, because nobody would settle the new row."""
    now = row.pop("now")
    if row["state"] == int(PromiseState.PENDING):
        # Its parent has continued without it, because enough others were settled before.
        why = f"execution {source.id}, of which this is a rerun, did not wait for it".encode()
        row |= {"state": int(PromiseState.CANCELLED), "settled_at": now, "codec": 0, "data": why}
    return row
