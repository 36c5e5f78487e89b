"""A service's own books: an SQLite file that is on disk before the service answers."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUESTS = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, request TEXT NOT NULL, reference TEXT, status INTEGER NOT NULL,
    outcome TEXT NOT NULL);
"""


class Ledger:
    """Entries of a service, and a line for every request that it answered.

    One connection behind one lock: what happens in :meth:`transaction` happens alone, so "look, then write" needs
    no further care.
    """

    def __init__(self, path: Path | str, schema: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(REQUESTS + schema)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is committed, to the disk, when the block is left without an error."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query, as dictionaries."""
        with self._lock:
            return [dict(row) for row in self._db.execute(query, parameters)]

    def note(self, request: str, reference: str | None, status: int, outcome: str) -> None:
        """Write down that a request was answered, and how."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO requests (at, request, reference, status, outcome) VALUES (?, ?, ?, ?, ?)",
                (time.time(), request, reference, status, outcome),
            )

    def outcomes(self) -> dict[str, int]:
        """How many requests had which outcome."""
        found = self.rows("SELECT outcome, COUNT(*) AS requests FROM requests GROUP BY outcome")
        return {row["outcome"]: row["requests"] for row in found}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
