"""Databases for tests: each test gets one of its own, on every server that this machine has."""

from __future__ import annotations

import functools
import secrets
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from .backends import Backend, Missing, address
from .servers import OwnMariaDB, OwnPgBouncer, OwnPostgreSQL, OwnServer, ServerFailed

__all__ = ["FINDERS", "JournalDatabase", "new_database"]


class JournalDatabase:
    """An empty database that belongs to one test.

    :param kind: ``sqlite``, ``postgresql`` or ``mysql``.
    :param url: for SQLAlchemy, with the driver.
    :param version: of the server.
    """

    def __init__(self, kind: str, url: str, version: str) -> None:
        self.kind = kind
        self.url = url
        self.version = version
        self._engines: list[Engine] = []
        #: What stands between, where that is a pooler; and the same database without it.
        self.pooler: OwnPgBouncer | None = None
        self.behind = self

    def __repr__(self) -> str:
        return f"<{self.kind} {self.version}: {self.url}>"

    @property
    def conf(self) -> dict[str, Any]:
        """The settings that put an application's journal here."""
        return {"durable_database_url": self.url}

    def engine(self, **options: Any) -> Engine:
        """A new engine on it, disposed of when the test ends."""
        engine = sa.create_engine(self.url, **options)
        self._engines.append(engine)
        return engine

    def dispose(self) -> None:
        """Close what the test's engines hold."""
        for engine in self._engines:
            engine.dispose()


class _SQLite:
    """A file in the test's folder."""

    version = sqlite3.sqlite_version
    where = "a file per test"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[JournalDatabase]:
        database = JournalDatabase("sqlite", f"sqlite:///{folder / 'journal.db'}", self.version)
        try:
            yield database
        finally:
            database.dispose()

    def close(self) -> None:
        pass


class _Server:
    """A database server on which we may create databases.

    :param own: ours, which is started where it has been stopped, and ends with us.
    """

    def __init__(self, kind: str, url: URL, origin: str, own: OwnServer | None = None) -> None:
        self.kind = kind
        self.url = url
        self.own = own
        # No pool: a server may stop and start again under a test.
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        self.version = self._read_version()
        self.where = (
            f"{url.host or url.query.get('host') or 'local socket'}:{url.port or self._default_port} ({origin})"
        )

    @property
    def _default_port(self) -> int:
        return {"postgresql": 5432, "mysql": 3306}[self.kind]

    def _read_version(self) -> str:
        with self._admin.connect() as connection:
            text = str(connection.execute(sa.text("SELECT version()")).scalar_one())
            if self.kind == "postgresql":
                allowed = connection.execute(
                    sa.text("SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user")
                ).scalar_one()
                if not allowed:
                    raise Missing(f"{self.url.render_as_string()} does not let us create databases")
                return text.split()[1]
        return f"MariaDB {text.split('-')[0]}" if "MariaDB" in text else f"MySQL {text.split('-')[0]}"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[JournalDatabase]:
        if self.own is not None:
            self.own.start()
        url = new_database(self._admin)
        database = JournalDatabase(self.kind, url.render_as_string(hide_password=False), self.version)
        try:
            yield database
        finally:
            database.dispose()
            self._delete(str(url.database))

    def _delete(self, name: str) -> None:
        """Delete a database, whoever else still uses it."""
        with self._admin.connect() as connection:
            if self.kind == "postgresql":
                connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
                return
            # An open transaction would hold the tables against DROP DATABASE.
            users = connection.execute(
                sa.text("SELECT id FROM information_schema.processlist WHERE db = :name"), {"name": name}
            ).scalars()
            for user in users.all():
                try:
                    connection.execute(sa.text(f"KILL {int(user)}"))
                except SQLAlchemyError:
                    pass  # It left by itself in the meantime.
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))

    def close(self) -> None:
        self._admin.dispose()
        if self.own is not None:
            self.own.remove()


def new_database(admin: Engine) -> URL:
    """Create an empty database, of a new name.

    :param admin: of a database on the same server, in autocommit mode.
    :returns: its address, for SQLAlchemy.
    """
    name = f"durable_test_{secrets.token_hex(6)}"
    characters = " CHARACTER SET utf8mb4" if admin.dialect.name == "mysql" else ""
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}{characters}"))
    return admin.url.set(database=name)


def _first_that_answers(kind: str, urls: list[str]) -> tuple[_Server | None, list[str]]:
    """The first of these servers that answers, and what was wrong with those before it."""
    complaints = []
    for url in urls:
        try:
            return _Server(kind, make_url(url), "service"), complaints
        except (SQLAlchemyError, ImportError, Missing) as error:
            complaints.append(f"{make_url(url).render_as_string()}: {str(error).splitlines()[0]}")
    return None, complaints


class _Pooled:
    """A PostgreSQL behind a PgBouncer of our own, which gives nobody a session."""

    def __init__(self, server: _Server) -> None:
        self._pooler = OwnPgBouncer(server.url.render_as_string(hide_password=False))
        self._pooler.start()
        self._server = server
        version = subprocess.run([self._pooler.program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = version.splitlines()[0]
        self.where = f"127.0.0.1:{self._pooler.port} (our own)"

    @contextmanager
    def lend(self, folder: Path) -> Iterator[JournalDatabase]:
        self._pooler.start()
        with self._server.lend(folder) as behind:
            there = make_url(behind.url)
            url = make_url(self._pooler.url).set(database=there.database)
            database = JournalDatabase("postgresql", url.render_as_string(hide_password=False), self.version)
            database.pooler, database.behind = self._pooler, behind
            try:
                yield database
            finally:
                database.dispose()

    def close(self) -> None:
        self._pooler.remove()


def _find_pgbouncer() -> Backend[JournalDatabase]:
    server = _find_postgresql()
    try:
        return _Pooled(server)
    except ServerFailed as error:
        raise Missing(f"{error} (apt-get install pgbouncer)") from error


def _find_postgresql() -> _Server:
    return _look_for_postgresql(address("postgresql"))


@functools.cache
def _look_for_postgresql(given: str | None) -> _Server:
    urls = [
        "postgresql+psycopg://postgres@127.0.0.1:5432/postgres?connect_timeout=3",
        "postgresql+psycopg:///postgres?host=/var/run/postgresql&connect_timeout=3",
        "postgresql+psycopg:///postgres?host=/tmp&connect_timeout=3",
    ]
    if given != "bundled":
        server, complaints = _first_that_answers("postgresql", [given] if given else urls)
        if server is not None:
            return server
        if given:
            raise Missing(f"DURABLE_TEST_POSTGRESQL_URL: {complaints[-1]}")
    return _our_own("postgresql", OwnPostgreSQL, "no server at 127.0.0.1:5432 that lets us in")


def _find_mysql() -> Backend[JournalDatabase]:
    given = address("mysql")
    if given == "bundled":
        return _our_own("mysql", OwnMariaDB, "DURABLE_TEST_MYSQL_URL asks for our own")
    usual = "mysql+pymysql://root@127.0.0.1:3306/?charset=utf8mb4&connect_timeout=3"
    server, complaints = _first_that_answers("mysql", [given or usual])
    if server is not None:
        return server
    if given:
        raise Missing(f"DURABLE_TEST_MYSQL_URL: {complaints[-1]}")
    return _our_own("mysql", OwnMariaDB, f"{complaints[-1]} (set DURABLE_TEST_MYSQL_URL)")


def _our_own(kind: str, make: Callable[[], OwnPostgreSQL | OwnMariaDB], why: str) -> _Server:
    try:
        own = make()
        own.start()
    except ServerFailed as error:
        raise Missing(f"{why}, and {error}") from error
    return _Server(kind, make_url(own.url), "our own", own)


#: Kind of database → how to find it. The order is that of the reports.
FINDERS: dict[str, Callable[[], Backend[JournalDatabase]]] = {
    "sqlite": _SQLite,
    "postgresql": _find_postgresql,
    "mysql": _find_mysql,
    "pgbouncer": _find_pgbouncer,
}
