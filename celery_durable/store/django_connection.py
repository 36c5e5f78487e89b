"""Django's connections, as the journal uses them.

Django has a connection for every thread. The journal's statements in its transaction are compiled by SQLAlchemy and run
through Django's cursor. Django is imported only when it is used.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql.base import MySQLDialect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from celery_durable.errors import ConfigurationError

from .database import Database
from .django_place import connection_of_alias as _connection
from .same_database import IDENTITY, different, file_of, told

__all__ = ["Borrowed", "alias_of", "in_atomic", "on_commit", "verify_alias"]

#: Django's vendor -> dialect for its SQL, with parameters in the style of Django's cursors.
_DIALECTS: dict[str, Callable[..., sa.Dialect]] = {
    "sqlite": SQLiteDialect,
    "postgresql": PGDialect,
    "mysql": MySQLDialect,
}

#: Aliases that are known to lead to a journal's database.
_known: weakref.WeakKeyDictionary[Database, set[str]] = weakref.WeakKeyDictionary()


# -- finding it ---------------------------------------------------------------------------------------------------


def alias_of(where: Any) -> str | None:
    """The alias of one of Django's connections (also of ``django.db.connection``); None for anything else."""
    if "django.db" not in sys.modules:
        return None
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.utils.connection import ConnectionProxy

    return str(where.alias) if isinstance(where, (BaseDatabaseWrapper, ConnectionProxy)) else None


def in_atomic(alias: str) -> bool:
    """Whether this thread is inside ``transaction.atomic()`` on a database."""
    if "django.db" not in sys.modules:
        return False
    return bool(_connection(alias).in_atomic_block)


def on_commit(alias: str, function: Callable[[], None]) -> None:
    """Call a function after the commit of this thread's transaction."""
    from django.db import transaction

    transaction.on_commit(function, using=alias)


def verify_alias(alias: str, database: Database) -> None:
    """Refuse a database of Django's that is not the journal's. Asks once.

    :raises ConfigurationError: names both.
    :raises JournalUnavailable: when the journal's database cannot be asked.
    """
    known = _known.setdefault(database, set())
    if alias in known or getattr(database, "alias", None) == alias:
        return
    borrowed = Borrowed(alias)
    vendor = borrowed.dialect.name
    if vendor == database.dialect and not database.in_memory:
        given = told(borrowed.execute(sa.text(IDENTITY[vendor])).one())
        ours: tuple[str, ...] = (file_of(database),)
        if vendor != "sqlite":
            ours = told(database.read(lambda c: c.execute(sa.text(IDENTITY[vendor])).one()))
        if given == ours:
            known.add(alias)
            return
    settings = borrowed.wrapper.settings_dict
    place = f"{vendor}://{settings.get('HOST') or ''}/{settings.get('NAME')} (DATABASES[{alias!r}])"
    raise ConfigurationError(different(place, database))


# -- using it -----------------------------------------------------------------------------------------------------


class _Answer:
    """The answer to a statement, with as much of SQLAlchemy's result as the journal needs."""

    def __init__(self, rowcount: int, rows: list[Any]) -> None:
        self.rowcount = rowcount
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def first(self) -> Any:
        return self._rows[0] if self._rows else None

    def one(self) -> Any:
        [row] = self._rows
        return row

    def all(self) -> list[Any]:
        return self._rows

    def scalar(self) -> Any:
        return self._rows[0][0] if self._rows else None

    def scalars(self) -> list[Any]:
        return [row[0] for row in self._rows]


class Borrowed:
    """Django's connection of this thread, as far as the journal uses a connection.

    :param alias: of the database.
    """

    def __init__(self, alias: str) -> None:
        self.wrapper = _connection(alias)
        make = _DIALECTS.get(self.wrapper.vendor)
        if make is None:
            raise ConfigurationError(
                f"DATABASES[{alias!r}] is {self.wrapper.vendor}, which cannot hold a journal; use sqlite, postgresql, "
                "mysql or mariadb."
            )
        self.dialect = _dialect(self.wrapper.vendor)

    def execute(
        self,
        statement: Any,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        execution_options: Any = None,
    ) -> _Answer:
        """Run a statement, with one set of parameters or with several."""
        several = [parameters or {}] if parameters is None or isinstance(parameters, Mapping) else parameters
        keys = list(several[0]) if several else []
        compiled = statement.compile(
            dialect=self.dialect, column_keys=keys or None, compile_kwargs={"render_postcompile": True}
        )
        sql = str(compiled)
        count = 0
        rows: list[Any] = []
        with self.wrapper.cursor() as cursor:
            for values in several:
                cursor.execute(sql, compiled.construct_params(dict(values), escape_names=False) or None)
                count += cursor.rowcount
                if cursor.description:
                    names = [column[0] for column in cursor.description]
                    row = namedtuple("row", names, rename=True)  # type: ignore[misc]
                    rows = [row(*values) for values in cursor.fetchall()]
        return _Answer(count, rows)


@functools.cache
def _dialect(vendor: str) -> sa.Dialect:
    return _DIALECTS[vendor](paramstyle="pyformat")
