"""Removes ended executions: journal and payloads first; the row stays as a tombstone, and is removed some time later.

Everything happens in short transactions that wait for nobody: locked rows are left for later, and if an execution has
more entries than one transaction should remove, they are removed in slices. A crash between two slices leaves a
tombstone with payloads, because those are removed last; :meth:`RetentionStore.leftovers` finds it.

The entries of a global idempotency key (``key=``) are not removed: they and the tombstone stay as long as keys are
remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from celery_durable.common.faults import reached

from .database import Database
from .records import FINAL_STATES, State
from .tables import executions, guards, journal, now_ms, payloads, promises, upkeep

__all__ = ["Held", "Looked", "RetentionStore", "Right", "RightLost"]

_x = executions.c
_j = journal.c
_u = upkeep.c

_FINAL: Final = [state.value for state in FINAL_STATES]
#: How many keys one statement has.
_KEYS: Final = 500
#: Size of a row without its payload, but with its index entries, in bytes: measured, and rounded.
_EXECUTION, _PAYLOAD, _ENTRY = 400, 60, 110

#: It has ended, and nobody has to be notified of it any more.
_SETTLED = sa.and_(_x.state.in_(_FINAL), _x.wake_at.is_(None))

_LOOK = sa.select(
    _x.pk,
    _x.namespace,
    _x.state,
    _x.epoch,
    _x.generation,
    _x.steps,
    sa.case((_SETTLED, 1), else_=0).label("settled"),
    (now_ms() - _x.updated_at).label("idle"),
    (now_ms() - _x.pruned_at).label("pruned"),
)

#: Entries that hold a global key keep it after pruning.
_HOLDS_KEY = sa.exists().where(guards.c.key == _j.key, guards.c.pk == _j.pk)
_GOES = sa.or_(_j.key.is_(None), ~_HOLDS_KEY)


class Looked(NamedTuple):
    """What retention needs to know about an execution; times in milliseconds, by the database's clock."""

    pk: int
    #: False: it belongs to another application.
    ours: bool
    state: State
    epoch: int
    generation: int
    steps: int
    #: It has ended, and nobody has to be notified any more.
    settled: bool
    #: Time since the latest change.
    idle: int
    #: Time since it was pruned; None: it was not.
    pruned: int | None


class Right(NamedTuple):
    """The right of one service to look after a namespace, and its progress."""

    owner: str
    #: For how many milliseconds it is claimed.
    hold: int
    progress: str


class Held(NamedTuple):
    """The right was granted."""

    progress: str
    #: The database's clock, in milliseconds.
    now: int


class RightLost(Exception):
    """Another service looks after the namespace now; nothing was done."""


class RetentionStore:
    """Examines, prunes and forgets the executions of one namespace."""

    def __init__(self, database: Database, *, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    # -- who may --------------------------------------------------------------------------------------------

    def take(self, owner: str, hold: int) -> Held | None:
        """Request the right to look after the namespace, or prolong it.

        :param hold: for how many milliseconds.
        :returns: None while another service has it.
        """
        mine = _u.namespace == self._namespace
        query = sa.select(_u.owner, _u.progress, _u.held_until, now_ms().label("now")).where(mine)
        row = self._database.read(lambda c: c.execute(query).first())
        if row is None:
            return self._first(owner, hold)
        if row.owner != owner and row.held_until > row.now:
            return None
        change = (
            sa.update(upkeep)
            .where(mine, sa.or_(_u.owner == owner, _u.held_until <= now_ms()))
            .values(owner=owner, held_until=now_ms() + hold)
        )
        taken = self._database.write(lambda c: c.execute(change).rowcount, durable=False)
        return Held(row.progress, row.now) if taken else None

    def _first(self, owner: str, hold: int) -> Held | None:
        new = sa.insert(upkeep).values(
            namespace=self._namespace, owner=owner, held_until=now_ms() + hold, progress="{}"
        )
        try:
            self._database.write(lambda c: c.execute(new))
        except IntegrityError:
            return None
        return Held("{}", self.now())

    def keep(self, right: Right) -> None:
        """Prolong the right and store the progress.

        :raises RightLost: when another service has it now.
        """
        self._database.write(lambda c: self._verify(c, right), durable=False)

    def _verify(self, connection: Connection, right: Right | None) -> None:
        if right is None:
            return
        change = (
            sa.update(upkeep)
            .where(_u.namespace == self._namespace, _u.owner == right.owner)
            .values(held_until=now_ms() + right.hold, progress=right.progress)
        )
        if not connection.execute(change).rowcount:
            raise RightLost

    def now(self) -> int:
        """The database's clock, in milliseconds."""
        return int(self._database.read(lambda c: c.execute(sa.select(now_ms())).scalar_one()))

    # -- looking --------------------------------------------------------------------------------------------

    def look(self, after: int, until: int, rows: int) -> list[Looked]:
        """Executions of all namespaces with ``after < pk <= until``, by their key; at most ``rows``.

        Those of other namespaces are included: otherwise a statement could take very long to find one of ours.
        """
        return self._look(_LOOK.where(_x.pk > after, _x.pk <= until).order_by(_x.pk).limit(rows))

    def look_back(self, before: int, rows: int) -> list[Looked]:
        """The same from the other end: those with ``pk < before``, the latest first."""
        return self._look(_LOOK.where(_x.pk < before).order_by(_x.pk.desc()).limit(rows))

    def _look(self, query: sa.Select[Any]) -> list[Looked]:
        found = self._database.read(lambda c: c.execute(query).all())
        return [
            Looked(
                row.pk,
                row.namespace == self._namespace,
                State(row.state),
                row.epoch,
                row.generation,
                row.steps,
                bool(row.settled),
                int(row.idle),
                None if row.pruned is None else int(row.pruned),
            )
            for row in found
        ]

    def leftovers(self, pks: Iterable[int]) -> set[int]:
        """Those of these tombstones whose pruning was not completed."""
        query = sa.select(payloads.c.pk).where(payloads.c.pk.in_(list(pks))).distinct()
        return set(self._database.read(lambda c: c.execute(query).scalars().all()))

    def weigh(self, pks: Sequence[int]) -> tuple[int, int]:
        """About how many bytes these executions take: without their entries, and of their entries.

        It reads all their entries: pass only few executions, and none with a long journal.
        """
        entries = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(_j.payload)), 0)).where(
            _j.pk.in_(pks)
        )
        others = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(payloads.c.data)), 0)).where(
            payloads.c.pk.in_(pks)
        )

        def work(connection: Connection) -> tuple[int, int]:
            count, size = connection.execute(others).one()
            entries_count, entries_size = connection.execute(entries).one()
            rows = len(pks) * _EXECUTION + count * _PAYLOAD + int(size)
            return rows, entries_count * _ENTRY + int(entries_size)

        return self._database.read(work)

    # -- pruning --------------------------------------------------------------------------------------------

    def prune(self, rows: Sequence[Looked], right: Right | None = None) -> list[int]:
        """Prune executions in one transaction, except those that have changed meanwhile, or that somebody has locked.

        :returns: the keys of those that were pruned.
        :raises RightLost: when another service looks after the namespace now.
        """

        def work(connection: Connection) -> list[int]:
            self._verify(connection, right)
            pks = self._lock(connection, rows, _SETTLED, _x.pruned_at.is_(None))
            if pks:
                holders = self._holders(connection, pks)
                plain = [pk for pk in pks if pk not in holders]
                if plain:
                    connection.execute(sa.delete(journal).where(_j.pk.in_(plain)))
                if holders:
                    connection.execute(sa.delete(journal).where(_j.pk.in_(list(holders)), _GOES))
                self._clear(connection, pks)
                connection.execute(sa.update(executions).where(_x.pk.in_(pks)).values(pruned_at=now_ms()))
            reached("prune.before_commit")
            return pks

        done = self._database.write(work, durable=False)
        reached("prune.after_commit")
        return done

    def prune_slice(self, row: Looked, limit: int, right: Right | None = None) -> bool:
        """Prune one execution, or continue with it, removing at most ``limit`` entries.

        :returns: True when nothing is left to be removed.
        :raises RightLost: when another service looks after the namespace now.
        """

        def work(connection: Connection) -> bool:
            self._verify(connection, right)
            if not self._lock(connection, [row], _SETTLED):
                return True
            # Before the first slice, because an execution that is no longer complete must not be resumed.
            mark = sa.update(executions).where(_x.pk == row.pk, _x.pruned_at.is_(None))
            connection.execute(mark.values(pruned_at=now_ms()))
            place = (_j.generation, _j.scope, _j.position, _j.entry)
            query = sa.select(*place).where(_j.pk == row.pk, _GOES).order_by(*place).limit(1).offset(limit)
            bound = connection.execute(query).first()
            goes = sa.delete(journal).where(_j.pk == row.pk, _GOES)
            if bound is not None:
                goes = goes.where(_before(place, bound))
            connection.execute(goes)
            if bound is None:
                self._clear(connection, [row.pk])
            reached("prune.before_slice")
            return bound is None

        done = self._database.write(work, durable=False)
        reached("prune.after_slice")
        return done

    def forget(self, rows: Sequence[Looked], keys: int | None, right: Right | None = None) -> int:
        """Remove tombstones, in one transaction, and the global keys that they hold.

        :param keys: how many milliseconds a tombstone that holds a key stays after its end; None: for ever.
        :returns: how many were removed.
        :raises RightLost: when another service looks after the namespace now.
        """
        idle = {row.pk: row.idle for row in rows}

        def work(connection: Connection) -> int:
            self._verify(connection, right)
            pks = self._lock(connection, rows, _x.pruned_at.is_not(None))
            held = self._holders(connection, pks) if pks else {}
            pks = [pk for pk in pks if pk not in held or (keys is not None and idle[pk] >= keys)]
            if pks:
                released = [key for pk in pks for key in held.get(pk, ())]
                for start in range(0, len(released), _KEYS):
                    some = released[start : start + _KEYS]
                    connection.execute(sa.delete(guards).where(guards.c.key.in_(some), guards.c.pk.in_(pks)))
                connection.execute(sa.delete(journal).where(_j.pk.in_(pks)))
                self._clear(connection, pks)
                connection.execute(sa.delete(executions).where(_x.pk.in_(pks)))
            reached("forget.before_commit")
            return len(pks)

        done = self._database.write(work, durable=False)
        reached("forget.after_commit")
        return done

    def forgettable(self, rows: Sequence[Looked], keys: int | None) -> int:
        """How many of these tombstones :meth:`forget` would remove."""
        held = self._database.read(lambda c: self._holders(c, [row.pk for row in rows]))
        return sum(row.pk not in held or (keys is not None and row.idle >= keys) for row in rows)

    def _lock(self, connection: Connection, rows: Sequence[Looked], *conditions: sa.ColumnElement[bool]) -> list[int]:
        """Lock those of these executions that are unchanged since they were read."""
        epochs = {row.pk: row.epoch for row in rows}
        # The namespace is not in the query: SQLite would use its index, and read all its rows.
        query = (
            sa.select(_x.pk, _x.epoch, _x.namespace)
            .where(_x.pk.in_(list(epochs)), *conditions)
            .with_for_update(skip_locked=True)
        )
        ours = [row for row in connection.execute(query) if row.namespace == self._namespace]
        return sorted(row.pk for row in ours if row.epoch == epochs[row.pk])

    @staticmethod
    def _holders(connection: Connection, pks: Sequence[int]) -> dict[int, set[bytes]]:
        """Those of these executions that hold global keys, with their keys."""
        query = (
            sa.select(_j.pk, _j.key)
            .join(guards, sa.and_(guards.c.key == _j.key, guards.c.pk == _j.pk))
            .where(_j.pk.in_(list(pks)), _j.key.is_not(None))
        )
        found: dict[int, set[bytes]] = {}
        for row in connection.execute(query):
            found.setdefault(row.pk, set()).add(bytes(row.key))
        return found

    @staticmethod
    def _clear(connection: Connection, pks: Sequence[int]) -> None:
        """Remove what belongs to executions besides their journal."""
        connection.execute(sa.delete(promises).where(promises.c.pk.in_(pks)))
        connection.execute(sa.delete(payloads).where(payloads.c.pk.in_(pks)))


def _before(columns: Sequence[Any], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """A comparison of several columns, spelt out: not every database uses an index for a comparison of tuples."""
    column, value = columns[0], values[0]
    if len(columns) == 1:
        return column < value  # type: ignore[no-any-return]
    return sa.or_(column < value, sa.and_(column == value, _before(columns[1:], values[1:])))
