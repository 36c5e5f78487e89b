"""A journal with a past: finished executions in any number, loaded in bulk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from celery_durable.store.tables import executions, journal, payloads

from .bodies import Bodies
from .steps import plain

__all__ = ["STEPS", "load"]

#: Steps of each finished execution.
STEPS = 10
#: Executions that are written together.
_BATCH = 2_000
_TABLES = (executions, payloads, journal)


def load(bodies: Bodies, count: int, progress: Callable[[str], None]) -> None:
    """Copy one real execution of ten steps ``count`` times, under other keys and ids."""
    name = bodies.new_id()
    bodies.run(plain(STEPS), name)
    bodies.runtime.keeper.mark()  # Celery was told: nothing is left to be done
    engine = bodies.runtime.database.engine
    with engine.connect() as connection:
        model = {table: _rows(connection, table) for table in _TABLES}
        pk = connection.execute(sa.select(executions.c.pk).where(executions.c.id == name)).scalar_one()
    write = _copy if engine.dialect.name == "postgresql" else _insert
    numbers = iter(range(1, count + 1))
    while batch := list(itertools.islice(numbers, _BATCH)):
        progress(f"loading executions: {batch[0]:,} of {count:,}")
        with engine.begin() as connection:
            for table in _TABLES:
                write(connection, table, _copies(model[table], pk, name, batch))
    _analyse(engine)


def _rows(connection: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(sa.select(table))]


def _copies(rows: list[dict[str, Any]], pk: int, name: str, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """As if they had run before the model, one each millisecond."""
    for number in numbers:
        for row in rows:
            if row["pk"] == pk:
                copy = {**row, "pk": pk - (number << 22)}
                if "id" in row:
                    copy["id"] = f"{name}-{number}"
                yield copy


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    connection.execute(sa.insert(table), list(rows))


def _copy(connection: sa.Connection, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    columns = [column.name for column in table.columns]
    cursor: Any = connection.connection.cursor()
    with cursor.copy(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row([row[column] for column in columns])


def _analyse(engine: sa.Engine) -> None:
    """As the database does it by itself after a while."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in _TABLES:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"VACUUM ANALYZE {table.name}")
            elif engine.dialect.name == "mysql":
                connection.exec_driver_sql(f"ANALYZE TABLE {table.name}").all()
