"""Reads executions for people; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celery_durable.errors import UnknownExecution

from .database import Database
from .journal_reader import journaled, to_execution
from .latest import latest
from .records import Doubt, EffectCode, EntryKind, Execution, Journaled, PayloadKind, State, StoredPayload
from .rows import get_payload, is_name
from .statements import ENTRY_COLUMNS, UNTOLD
from .tables import executions, journal

__all__ = ["ExecutionReader"]

_x = executions.c
_j = journal.c

#: Entries whose payload is not a step's value, but tells what happened.
_TELLING = (
    EntryKind.AUDIT,
    EntryKind.SCOPE_END,
    EntryKind.ABORTED,
    EntryKind.CHECKPOINT,
    EntryKind.TIMER,
    EntryKind.CALL,
    EntryKind.SHARED,
)
#: The same columns, without the values of steps, which may be large, and secret.
_WITHOUT_VALUES = (
    *(c for c in ENTRY_COLUMNS if c is not _j.payload),
    sa.case((_j.kind.in_([int(k) for k in _TELLING]), _j.payload), else_=None).label("payload"),
)


class ExecutionReader:
    """Reads the executions of one namespace."""

    def __init__(self, database: Database, *, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def get(self, execution_id: str) -> Execution:
        """One execution.

        :raises UnknownExecution: when there is none of this id.
        """
        return self._database.read(lambda c: to_execution(self._row(c, execution_id)))

    def namespace_of(self, pk: int) -> str | None:
        """The namespace of an execution; None if there is none with this key."""
        found: str | None = self._database.read(
            lambda c: c.execute(sa.select(executions.c.namespace).where(executions.c.pk == pk)).scalar()
        )
        return found

    def find(
        self,
        *,
        states: Sequence[State] = (),
        task: str | None = None,
        limit: int = 50,
        before_pk: int | None = None,
        pruned: bool = False,
    ) -> list[Execution]:
        """Executions, the latest first.

        :param pruned: False: without tombstones; True: only tombstones, the last pruned first.
        :param before_pk: continue after the last one of the previous page.
        """
        return self._database.read(
            lambda c: [
                to_execution(row)
                for row in latest(
                    c,
                    self._namespace,
                    states=states,
                    task=task,
                    limit=limit,
                    before_pk=before_pk,
                    pruned=pruned,
                )
            ]
        )

    def entries(self, pk: int, generation: int, *, values: bool = True) -> list[Journaled]:
        """All entries of a generation, scope by scope.

        :param values: with the values, errors and arguments of the steps.
        """
        query = (
            sa.select(*(ENTRY_COLUMNS if values else _WITHOUT_VALUES))
            .where(_j.pk == pk, _j.generation == generation)
            .order_by(_j.scope, _j.position, _j.entry)
        )
        return self._database.read(lambda c: [journaled(r) for r in c.execute(query)])

    def generations(self, pk: int) -> list[int]:
        """The generations that have entries, the earliest first."""
        query = sa.select(_j.generation).where(_j.pk == pk).distinct().order_by(_j.generation)
        return self._database.read(lambda c: list(c.execute(query).scalars()))

    def aborts(self, pk: int) -> dict[int, StoredPayload]:
        """Why generations were aborted."""
        query = sa.select(_j.generation, _j.codec, _j.payload).where(
            _j.pk == pk, _j.kind == int(EntryKind.ABORTED), _j.payload.is_not(None)
        )
        return self._database.read(
            lambda c: {r.generation: StoredPayload(r.codec, bytes(r.payload)) for r in c.execute(query)}
        )

    def doubts(self, execution: Execution) -> list[Doubt]:
        """The steps of the present generation that are in doubt, scope by scope."""
        return self._database.read(lambda c: self._doubts(c, execution))

    def payload(self, pk: int, kind: PayloadKind) -> StoredPayload | None:
        """The envelope, the outcome, or the reason for parking."""
        return self._database.read(lambda c: get_payload(c, pk, kind))

    def is_eager(self, pk: int) -> bool:
        """Whether there is no message that could be sent again."""
        return self.payload(pk, PayloadKind.ENVELOPE) is None

    def _row(self, connection: Connection, execution_id: str, *, lock: bool = False) -> Any:
        query = sa.select(executions).where(_x.namespace == self._namespace, _x.id == execution_id)
        row = None
        if is_name(execution_id):
            row = connection.execute(query.with_for_update() if lock else query).first()
        # MySQL ignores blanks at the end of an id.
        if row is None or row.id != execution_id:
            raise UnknownExecution(
                f"there is no execution {execution_id!r} in namespace {self._namespace!r}. See what there is: celery "
                "durable list"
            )
        return row

    @staticmethod
    def _doubts(connection: Connection, row: Execution) -> list[Doubt]:
        query = (
            sa.select(_j.scope, _j.position, _j.kind, _j.name, _j.key)
            .where(
                _j.pk == row.pk,
                _j.generation == row.generation,
                sa.or_(_j.effect.in_([int(EffectCode.EXACTLY_ONCE_GUARDED), int(EffectCode.TRANSACTIONAL)]), UNTOLD),
            )
            .order_by(_j.scope, _j.position, _j.entry)
        )
        found = []
        for (scope, position), rows in groupby(connection.execute(query).all(), key=lambda r: (r.scope, r.position)):
            last = list(rows)[-1]
            if last.kind in (EntryKind.AUDIT, EntryKind.INTENT):
                key = None if last.key is None else bytes(last.key)
                found.append(Doubt(scope, position, last.name, key, parked=last.kind == EntryKind.AUDIT))
        return found
