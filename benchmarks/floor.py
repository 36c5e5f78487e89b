"""The floor: what the database itself takes for one committed row, said by the driver alone.

The cheapest way of each driver (autocommit: one statement, one journey), under the settings that the journal uses:
SQLite in WAL with ``synchronous = FULL``, the servers as they are.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.engine import URL, make_url

from .harness import Case, Note

__all__ = ["BARE", "CALL", "MANY", "Floor", "bare", "cases", "floor", "postgresql", "python"]

#: Names of the figures.
BARE = "bare commit of one row"
MANY = "bare executemany, per row"
CALL = "Python: a call of a function that does nothing"

#: About what the journal stores for a small step.
_PAYLOAD = os.urandom(90)


class _Words(NamedTuple):
    """How a database says it."""

    mark: str
    key: str
    blob: str
    begin: str


_WORDS = {
    "sqlite": _Words("?", "INTEGER PRIMARY KEY", "BLOB", "BEGIN IMMEDIATE"),
    "postgresql": _Words("%s", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "BYTEA", "BEGIN"),
    "mysql": _Words("%s", "BIGINT PRIMARY KEY AUTO_INCREMENT", "BLOB", "BEGIN"),
}


class Floor:
    """A table in a database, and the driver's connection to it.

    :param connection: a DB-API connection in autocommit mode.
    """

    def __init__(self, connection: Any, words: _Words) -> None:
        self._connection = connection
        self._words = words
        self._cursor = connection.cursor()
        self._cursor.execute(f"CREATE TABLE IF NOT EXISTS bench_floor (id {words.key}, data {words.blob})")
        self._insert = f"INSERT INTO bench_floor (data) VALUES ({words.mark})"  # noqa: S608

    def commit_one(self) -> None:
        """Insert one row and commit it."""
        self._cursor.execute(self._insert, (_PAYLOAD,))

    def commit_many(self, rows: int) -> None:
        """Insert rows with one ``executemany`` and commit them together."""
        self._cursor.execute(self._words.begin)
        self._cursor.executemany(self._insert, [(_PAYLOAD,)] * rows)
        self._cursor.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def connect(url: str) -> Floor:
    """The floor of the database that an SQLAlchemy URL names."""
    parsed = make_url(url)
    kind = parsed.get_backend_name()
    drivers = {"sqlite": _sqlite, "postgresql": postgresql}
    return Floor(drivers.get(kind, _mysql)(parsed), _WORDS.get(kind, _WORDS["mysql"]))


def _sqlite(url: URL) -> Any:
    assert url.database
    connection = sqlite3.connect(url.database, timeout=30, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def postgresql(url: URL) -> Any:
    """A connection of psycopg's own, in autocommit mode."""
    import psycopg

    # Not by a URL: SQLAlchemy and libpq write blanks in it in two ways.
    words: dict[str, Any] = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
    return psycopg.connect(**words, autocommit=True)


def _mysql(url: URL) -> Any:
    import pymysql

    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        database=url.database,
        autocommit=True,
    )


@contextmanager
def floor(url: str) -> Iterator[Floor]:
    """The floor, for as long as the block lasts."""
    found = connect(url)
    try:
        yield found
    finally:
        found.close()


def bare(ground: Floor, commits: int, name: str = BARE) -> Case:
    """The reference of nearly everything: so many commits, one after the other.

    :param name: of the figure.
    """

    def turn(note: Note) -> None:
        for _ in range(commits):
            begin = time.perf_counter()
            ground.commit_one()
            note(name, time.perf_counter() - begin)

    return Case({name: "s"}, turn)


def _nothing() -> None:
    pass


def python() -> Case:
    """How fast this processor runs Python at the moment: what is given in microseconds means little without it."""

    def turn(note: Note) -> None:
        for _ in range(100):
            begin = time.perf_counter()
            for _ in range(1000):
                _nothing()
            note(CALL, (time.perf_counter() - begin) / 1000)

    return Case({CALL: "s"}, turn)


def cases(ground: Floor, *, quick: bool) -> list[Case]:
    """The suite: one row a commit, and what is possible where many rows share one."""
    rows = 200 if quick else 2000

    def turn(note: Note) -> None:
        begin = time.perf_counter()
        ground.commit_many(rows)
        note(MANY, (time.perf_counter() - begin) / rows)

    return [bare(ground, 20 if quick else 200), Case({MANY: "s"}, turn)]
