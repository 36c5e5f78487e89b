"""A journal with a past: executions that ended whenever the test wants them to have ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from celery_durable.store import Database
from celery_durable.store.records import EffectCode, EntryKind, PayloadKind, PromiseState, State
from celery_durable.store.tables import executions, guards, journal, now_ms, payloads, pk_at, promises

__all__ = ["SECOND", "History"]

#: In milliseconds, as everything here.
SECOND = 1000

_TABLES = (executions, payloads, journal, promises, guards)
_numbers = itertools.count(1)


class History:
    """Writes rows as if executions had made them, and reads what is left."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self.now = int(database.read(lambda c: c.execute(sa.select(now_ms())).scalar_one()))

    def add(
        self,
        *ids: str,
        state: State = State.COMPLETED,
        ended: int = 0,
        began: int | None = None,
        steps: int = 2,
        key: bytes | None = None,
        size: int = 20,
        **values: Any,
    ) -> None:
        """Executions that ended ``ended`` milliseconds ago, and began just before, or ``began`` milliseconds ago.

        :param key: they hold a global key: these 32 bytes.
        :param size: of each result, in bytes.
        :param values: other columns of their rows.
        """
        rows: dict[sa.Table, list[dict[str, Any]]] = {table: [] for table in _TABLES}
        for name in ids:
            pk = pk_at(self.now - (ended if began is None else began)) + next(_numbers)
            row = {
                "pk": pk, "namespace": self._namespace, "id": name, "task": "old", "state": state.value, "epoch": 1,
                "lease_until": 0, "wake_at": None, "generation": 1, "base_generation": 1, "attempts": 0, "retries": 0,
                "replacements": 0, "sends": 0, "steps": steps, "pruned_at": None, "created_at": self.now - ended,
                "updated_at": self.now - ended,
            }  # fmt: skip
            rows[executions].append({**row, **values})
            for kind in (PayloadKind.ENVELOPE, PayloadKind.OUTCOME):
                rows[payloads].append({"pk": pk, "kind": int(kind), "codec": 1, "data": b"{}"})
            rows[promises].append(
                {
                    "id": f"promise-{pk}",
                    "pk": pk,
                    "name": "p",
                    "state": int(PromiseState.RESOLVED),
                    "created_at": self.now - ended,
                }
            )
            rows[journal] += (self._entry(pk, n, size, key if n == steps - 1 else None) for n in range(steps))
            if key is not None:
                rows[guards].append(
                    {
                        "key": key,
                        "fingerprint": b"f" * 32,
                        "pk": pk,
                        "generation": 1,
                        "scope": "",
                        "position": steps - 1,
                        "created_at": self.now - ended,
                    }
                )
        self._database.write(lambda c: [c.execute(sa.insert(table), some) for table, some in rows.items() if some])

    def _entry(self, pk: int, position: int, size: int, key: bytes | None) -> dict[str, Any]:
        return {
            "pk": pk, "generation": 1, "scope": "", "position": position, "entry": 0, "kind": int(EntryKind.RESULT),
            "effect": int(EffectCode.EXACTLY_ONCE_GUARDED if key else EffectCode.IDEMPOTENT), "name": "step",
            "fingerprint": b"f" * 32, "key": key, "epoch": 1, "attempt": 1, "at": self.now, "duration_us": 1,
            "codec": 1, "payload": b"x" * size,
        }  # fmt: skip

    # -- what is left -----------------------------------------------------------------------------------------

    def _pks(self, names: Iterable[str] | None = None) -> dict[str, int]:
        query = sa.select(executions.c.id, executions.c.pk)
        if names is not None:
            query = query.where(executions.c.id.in_(list(names)))
        return {row.id: row.pk for row in self._database.read(lambda c: c.execute(query).all())}

    def whole(self) -> list[str]:
        """The executions that have not been pruned."""
        query = sa.select(executions.c.id).where(executions.c.pruned_at.is_(None)).order_by(executions.c.id)
        return list(self._database.read(lambda c: c.execute(query).scalars().all()))

    def tombstones(self) -> list[str]:
        """Those that have."""
        query = sa.select(executions.c.id).where(executions.c.pruned_at.is_not(None)).order_by(executions.c.id)
        return list(self._database.read(lambda c: c.execute(query).scalars().all()))

    def rows(self, name: str) -> dict[str, int]:
        """How many rows of each table belong to an execution; without those that have none."""
        [pk] = self._pks([name]).values()
        return {table: n for table, n in self._counts(_TABLES[1:], pk).items() if n}

    def orphans(self) -> int:
        """How many rows belong to no execution at all."""
        known = sa.select(executions.c.pk)
        count = 0
        for table in _TABLES[1:]:
            query = sa.select(sa.func.count()).select_from(table).where(table.c.pk.not_in(known))
            count += self._database.read(lambda c, q=query: c.execute(q).scalar_one())  # type: ignore[misc]
        return count

    def _counts(self, tables: Iterable[sa.Table], pk: int) -> dict[str, int]:
        found = {}
        for table in tables:
            query = sa.select(sa.func.count()).select_from(table).where(table.c.pk == pk)
            name = table.name.removeprefix("durable_")
            found[name] = self._database.read(lambda c, q=query: c.execute(q).scalar_one())  # type: ignore[misc]
        return found
