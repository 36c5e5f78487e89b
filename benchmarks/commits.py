"""How many transactions a database has committed, by its own count."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from tests.support.databases import JournalDatabase

__all__ = ["counter"]


def counter(database: JournalDatabase) -> Callable[[], int]:
    """Gives the number of commits so far; only differences mean something, and only while nobody is connected.

    * SQLite: the change counter of the WAL index. Write transactions of every process, and nothing else.
    * PostgreSQL: the next transaction id of the *server*, so others who write there are counted too. A transaction that
      writes nothing gets none, and is not counted.
    * MySQL, MariaDB: ``Com_commit`` of the *server*, so others who use it are counted too. An insert in autocommit mode
      is no COMMIT, and is not counted.
    """
    return {"sqlite": _sqlite, "postgresql": _postgresql}.get(database.kind, _mysql)(database)


def _sqlite(database: JournalDatabase) -> Callable[[], int]:
    path = sa.make_url(database.url).database
    assert path
    # Without a connection the index would go with the last worker.
    keeper = database.engine(poolclass=sa.pool.StaticPool).connect()
    keeper.exec_driver_sql("SELECT 1 FROM sqlite_master").all()

    # Opened once and left open: to close it would drop this process's locks on it, the keeper's too.
    index = os.open(f"{path}-shm", os.O_RDONLY)

    def read() -> int:
        assert not keeper.closed
        # https://sqlite.org/walformat.html: version, unused, change counter, in the machine's byte order.
        return int(struct.unpack("=3I", os.pread(index, 12, 0))[2])

    return read


_NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


def _postgresql(database: JournalDatabase) -> Callable[[], int]:
    return lambda: int(_first(database, _NEXT)[0])


def _mysql(database: JournalDatabase) -> Callable[[], int]:
    return lambda: int(_first(database, "SHOW GLOBAL STATUS LIKE 'Com_commit'")[1])


def _first(database: JournalDatabase, query: str, **values: Any) -> Any:
    engine = database.engine(isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return connection.execute(sa.text(query), values).one()
