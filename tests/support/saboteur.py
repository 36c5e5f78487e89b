"""Makes a database refuse: the server itself answers what the library says with an error of the test's choice.

Triggers on the journal's tables raise it, so that it takes the same way to the client as a real one: a full disk, a
server that was made read-only, a statement that somebody has cancelled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from celery_durable.store.server_errors import is_conflict
from celery_durable.store.tables import metadata

from .databases import JournalDatabase

__all__ = ["ERRORS", "refusing"]

#: Kind of database → what goes wrong, and the code of it.
ERRORS: dict[str, dict[str, str | int]] = {
    "postgresql": {
        "cancelled or too late": "57014",
        "lock timeout": "55P03",
        "read-only": "25006",
        "disk full": "53100",
        "permission denied": "42501",
        "out of memory": "53200",
        "dead-lock": "40P01",
        "serialization": "40001",
        "shutdown": "57P01",
        "input or output": "58030",
        "a table is gone": "42P01",
        "internal": "XX000",
    },
    "mysql": {
        "cancelled": 1317,
        "too late": 1969,
        "lock timeout": 1205,
        "read-only": 1290,
        "disk full": 1021,
        "table full": 1114,
        "permission denied": 1142,
        "out of memory": 1041,
        "dead-lock": 1213,
        "shutdown": 1053,
        "a table is gone": 1146,
    },
}

_TABLES = [table.name for table in metadata.sorted_tables if table.name != "durable_version"]


@contextlib.contextmanager
def refusing(database: JournalDatabase, code: str | int) -> Iterator[None]:
    """Every change of a table of the journal's is answered with this error."""
    admin = database.engine(isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    begin, end = (_postgresql if database.kind == "postgresql" else _mysql)(code)
    with admin.connect() as connection:
        for statement in begin:
            connection.exec_driver_sql(statement)
    try:
        yield
    finally:
        with admin.connect() as connection:
            for statement in end:
                _say(connection, statement)


def _say(connection: sa.Connection, statement: str) -> None:
    """Again where the transactions of the test, which go on, make a dead-lock with it."""
    while True:
        try:
            connection.exec_driver_sql(statement)
            return
        except sa.exc.OperationalError as error:
            if not is_conflict(error):
                raise


def _postgresql(code: str | int) -> tuple[list[str], list[str]]:
    function = (
        "CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'sabotage' USING ERRCODE = '{code}'; END $$"
    )
    triggers = [
        f"CREATE TRIGGER sabotage BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION sabotage()"
        for table in _TABLES
    ]
    return [function, *triggers], ["DROP FUNCTION sabotage CASCADE"]


def _mysql(code: str | int) -> tuple[list[str], list[str]]:
    names = [(f"sabotage_{table}_{event}".lower(), table, event) for table in _TABLES for event in ("INSERT", "UPDATE")]
    begin = [
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW "
        f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'sabotage'"
        for name, table, event in names
    ]
    return begin, [f"DROP TRIGGER {name}" for name, _, _ in names]
