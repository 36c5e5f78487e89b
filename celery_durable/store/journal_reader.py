"""Reads the journal's rows: by segment, by position, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from .database import Database
from .records import EffectCode, EntryKind, Execution, Journaled, State
from .statements import BEGUN, ENTRY_COLUMNS, SEGMENT
from .tables import journal

__all__ = ["GROUP", "JournalReader", "journaled", "to_execution"]

_j = journal.c

#: Every entry of the guarded and transactional steps of some generations (G6), without their values.
_GUARDED = (
    sa.select(*(sa.null().label(c.name) if c is _j.payload else c for c in ENTRY_COLUMNS))
    .where(
        _j.pk == sa.bindparam("pk"),
        _j.generation >= sa.bindparam("first"),
        _j.generation <= sa.bindparam("last"),
        _j.effect.in_([int(EffectCode.EXACTLY_ONCE_GUARDED), int(EffectCode.TRANSACTIONAL)]),
    )
    .order_by(_j.generation, _j.scope, _j.position, _j.entry)
)

#: The first entries of several scopes.
_BEGINNINGS = (
    sa.select(*ENTRY_COLUMNS)
    .where(
        _j.pk == sa.bindparam("pk"),
        _j.generation == sa.bindparam("generation"),
        _j.scope.in_(sa.bindparam("scopes", expanding=True)),
    )
    .order_by(_j.scope, _j.position, _j.entry)
    .limit(sa.bindparam("rows"))
)

#: The entries of one position.
GROUP = (
    sa.select(*ENTRY_COLUMNS)
    .where(
        _j.pk == sa.bindparam("pk"),
        _j.generation == sa.bindparam("generation"),
        _j.scope == sa.bindparam("scope"),
        _j.position == sa.bindparam("position"),
    )
    .order_by(_j.entry)
)

_OUTCOMES = (EntryKind.RESULT, EntryKind.SKIPPED, EntryKind.LOST, EntryKind.CHECKPOINT)
_OUTCOME_COLUMNS = (
    *(c for c in ENTRY_COLUMNS if c is not _j.payload),
    sa.case((_j.kind == int(EntryKind.CHECKPOINT), _j.payload), else_=None).label("payload"),
)


def journaled(row: Any) -> Journaled:
    """A row of ``ENTRY_COLUMNS`` as a record; drivers differ in what they return for binary columns."""
    record = Journaled._make(row)
    sample: Any = record.payload or record.fingerprint
    if type(sample) is memoryview:
        record = Journaled._make(bytes(value) if isinstance(value, memoryview) else value for value in row)
    return record


def to_execution(row: Any) -> Execution:
    """A row of the executions table as a record."""
    fields: dict[str, Any] = {name: row._mapping[name] for name in _EXECUTION_FIELDS}
    return Execution(**{**fields, "state": State(fields["state"])})


_EXECUTION_FIELDS = tuple(Execution.__dataclass_fields__)


class JournalReader:
    """Reads the journal of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def segment(self, pk: int, generation: int, scope: str, position: int, rows: int) -> list[Journaled]:
        """Up to ``rows`` entries of a scope, from ``position`` on. The last position may be cut in two."""
        values = {"pk": pk, "generation": generation, "scope": scope, "position": position, "rows": rows}
        return self._database.read(
            lambda c: [journaled(r) for r in c.execute(SEGMENT, values).all()],
            single=lambda driver: driver.segment(values),
        )

    def beginnings(self, pk: int, generation: int, scopes: Sequence[str], rows: int) -> list[Journaled]:
        """Up to ``rows`` entries of several scopes, scope by scope. The last one may be cut in two."""
        values = {"pk": pk, "generation": generation, "scopes": list(scopes), "rows": rows}
        return self._database.read(lambda c: [journaled(r) for r in c.execute(_BEGINNINGS, values)])

    def guarded(self, pk: int, first: int, last: int) -> list[Journaled]:
        """Entries of all guarded steps in the generations ``first`` to ``last``, without their payloads."""
        values = {"pk": pk, "first": first, "last": last}
        return self._database.read(lambda c: [journaled(r) for r in c.execute(_GUARDED, values)])

    def group(self, pk: int, generation: int, scope: str, position: int) -> list[Journaled]:
        """The entries of one position."""
        values = {"pk": pk, "generation": generation, "scope": scope, "position": position}
        return self._database.read(lambda c: [journaled(r) for r in c.execute(GROUP, values)])

    def of_kind(self, kind: EntryKind, pk: int, first: int, last: int) -> list[Journaled]:
        """All entries of one kind in the generations ``first`` to ``last``."""
        query = sa.select(*ENTRY_COLUMNS).where(_j.pk == pk, _j.generation.between(first, last), _j.kind == int(kind))
        return self._database.read(lambda c: [journaled(r) for r in c.execute(query.order_by(_j.generation))])

    def outcomes(self, pk: int, first: int, last: int) -> list[Journaled]:
        """Outcomes of steps in the generations ``first`` to ``last``, without values, packs as they are; and the open
        intents of steps that may be repeated.
        """
        kinds = [int(kind) for kind in _OUTCOMES]
        query = (
            sa.select(*_OUTCOME_COLUMNS)
            .where(_j.pk == pk, _j.generation.between(first, last), sa.or_(_j.kind.in_(kinds), BEGUN))
            .order_by(_j.generation, _j.scope, _j.position, _j.entry)
        )
        return self._database.read(lambda c: [journaled(r) for r in c.execute(query)])

    def scopes(self, pk: int, generation: int) -> set[str]:
        """The scopes that have entries."""
        query = sa.select(_j.scope).where(_j.pk == pk, _j.generation == generation).distinct()
        return self._database.read(lambda c: set(c.execute(query).scalars()))
