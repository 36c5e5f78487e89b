"""What the statements of a thread cost the database: how many rows each of them looked at, and whether it scanned.

The database itself says so: PostgreSQL by ``EXPLAIN (ANALYZE)`` of each statement, in a savepoint, just before it runs;
MariaDB by the counters of the session and ``EXPLAIN``; SQLite by the steps of its machine and ``EXPLAIN QUERY PLAN``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

__all__ = ["Effort", "Spent"]

#: Tables that grow with history, sleepers, or messages.
GROWING = ("durable_execution", "durable_payload", "durable_journal", "durable_promise", "durable_outbox")
#: Steps of SQLite's machine for one row, at least.
_STEPS_PER_ROW = 5

_READS = re.compile(r"(?is)^\s*(?:select|update|delete|with)\b")


class Spent(NamedTuple):
    """What one statement cost."""

    statement: str
    #: Rows that were looked at.
    rows: int
    #: Tables that grow, and were read from end to end.
    scanned: tuple[str, ...]
    #: As the database explains it.
    plan: str

    def __str__(self) -> str:
        words = " ".join(self.statement.split())
        return f"{words[:200]} ... {words[-600:]}\n  looked at {self.rows} rows\n  {self.plan}"


class Effort:
    """Watches all statements of SQLAlchemy's in this thread: ``with effort.watched(): ...``.

    Other threads may belong to what an earlier test of this process has left.
    """

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self._explaining = False
        self._thread = 0
        self._before: dict[int, tuple[int, str]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what is spent in here."""
        self._thread = threading.get_ident()
        event.listen(Engine, "before_cursor_execute", self._on_before)
        event.listen(Engine, "after_cursor_execute", self._on_after)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._on_before)
            event.remove(Engine, "after_cursor_execute", self._on_after)

    def _on_before(
        self, connection: Connection, cursor: Any, statement: str, given: Any, context: Any, many: Any
    ) -> None:
        if self._explaining or threading.get_ident() != self._thread or not _concerns(statement):
            return
        parameters = given[0] if many else given
        self._explaining = True
        try:
            getattr(self, f"_begin_{_kind(connection)}")(connection, cursor, statement, parameters)
        finally:
            self._explaining = False

    def _on_after(
        self, connection: Connection, cursor: Any, statement: str, given: Any, context: Any, many: Any
    ) -> None:
        if not self._explaining and _kind(connection) == "mysql" and id(cursor) in self._before:
            before, plan = self._before.pop(id(cursor))
            rows = self._handled(connection) - before
            self.spent.append(Spent(statement, rows, _scans_of_mysql(plan), plan))

    # -- each database ---------------------------------------------------------------------------------------

    def _begin_postgresql(self, connection: Connection, cursor: Any, statement: str, parameters: Any) -> None:
        raw = connection.connection.cursor()
        # What is changed twice is taken back. A statement that stands for itself is a question.
        driver: Any = connection.connection.driver_connection
        alone = driver.autocommit
        if not alone:
            raw.execute("SAVEPOINT effort")
        analyse = "ANALYZE, " if not alone or statement.lstrip().upper().startswith("SELECT") else ""
        raw.execute(f"EXPLAIN ({analyse}FORMAT JSON) {statement}", parameters)
        [[found]] = raw.fetchall()
        if not alone:
            raw.execute("ROLLBACK TO SAVEPOINT effort")
            raw.execute("RELEASE SAVEPOINT effort")
        raw.close()
        nodes = list(_nodes(found[0]["Plan"]))
        rows = sum(_examined(node) for node in nodes)
        scanned = {n["Relation Name"] for n in nodes if n["Node Type"] == "Seq Scan"} & set(GROWING)
        self.spent.append(Spent(statement, rows, tuple(sorted(scanned)), json.dumps(found[0]["Plan"])))

    def _begin_mysql(self, connection: Connection, cursor: Any, statement: str, parameters: Any) -> None:
        raw = connection.connection.cursor()
        raw.execute(f"EXPLAIN {statement}", parameters)
        plan = "\n  ".join(str(row) for row in raw.fetchall())
        raw.close()
        self._before[id(cursor)] = (self._handled(connection), plan)

    @staticmethod
    def _handled(connection: Connection) -> int:
        raw = connection.connection.cursor()
        raw.execute("SHOW SESSION STATUS WHERE Variable_name LIKE 'Handler\\_read\\_%'")
        counts = {name: int(value) for name, value in raw.fetchall()}
        raw.close()
        # Rows of temporary tables count as well: those of a union are read once more.
        return sum(counts[f"Handler_read_{word}"] for word in ("key", "next", "prev", "rnd_next"))

    def _begin_sqlite(self, connection: Connection, cursor: Any, statement: str, parameters: Any) -> None:
        raw = connection.connection.cursor()
        raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        plan = [str(row[-1]) for row in raw.fetchall()]
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(step, 1)
        try:
            if raw.connection.in_transaction:
                raw.execute("SAVEPOINT effort")
                raw.execute(statement, parameters).fetchall()
                raw.execute("ROLLBACK TO effort")
                raw.execute("RELEASE effort")
            elif statement.lstrip().upper().startswith("SELECT"):
                raw.execute(statement, parameters).fetchall()
        finally:
            driver.set_progress_handler(None, 0)
            raw.close()
        # Along a key or an index it may be the order that is asked for, of which a limit takes the beginning.
        limited = "LIMIT" in statement.upper()
        scans = [line for line in plan if line.startswith("SCAN") and not limited and "USING" not in line]
        scanned = tuple(table for table in GROWING if any(table in line for line in scans))
        self.spent.append(Spent(statement, steps // _STEPS_PER_ROW, scanned, "\n  ".join(plan)))


def _kind(connection: Connection) -> str:
    return {"mariadb": "mysql"}.get(connection.dialect.name, connection.dialect.name)


def _concerns(statement: str) -> bool:
    reads = _READS.match(statement) or re.match(r"(?is)^\s*insert\b.*\bselect\b", statement)
    return bool(reads) and any(table in statement for table in GROWING)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _examined(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"] or "Relation Name" not in node:
        return 0
    dropped = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return int((node.get("Actual Rows", 0) + dropped) * node.get("Actual Loops", 1))


def _scans_of_mysql(plan: str) -> tuple[str, ...]:
    # A line is: id, kind, table, type, possible keys, key, ...
    return tuple(table for table in GROWING if re.search(rf"'{table}(?:_\d+)?', 'ALL'", plan))
