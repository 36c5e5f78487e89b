"""The journal's database through an asyncio driver: only for operations that are coroutine functions."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, Engine, make_url

from celery_durable.errors import ConfigurationError

from .database import Database
from .pooler import Pooler

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["AsyncDatabase", "asyncio_of_sqlalchemy"]

#: Kind of database -> driver for asyncio, and the package that it comes with.
_DRIVERS: Final = {
    "postgresql": ("postgresql+psycopg", "psycopg[binary]"),
    "mysql": ("mysql+asyncmy", "asyncmy"),
    "mariadb": ("mariadb+asyncmy", "asyncmy"),
    "sqlite": ("sqlite+aiosqlite", "aiosqlite"),
}


def asyncio_of_sqlalchemy() -> Any:
    """The module ``sqlalchemy.ext.asyncio``.

    :raises ConfigurationError: if it cannot be used.
    """
    try:
        import_module("greenlet")
        return import_module("sqlalchemy.ext.asyncio")
    except ImportError as error:
        raise ConfigurationError(
            "a transactional step whose operation is a coroutine function needs greenlet, as all of SQLAlchemy's "
            "asyncio does: pip install 'sqlalchemy[asyncio]'."
        ) from error


class AsyncDatabase(Database):
    """The same database through an asyncio driver. Its connections are used only in SQLAlchemy's greenlets, and each is
    closed after use, because it belongs to the event loop in which it was opened.

    :param url: of the journal's database, with its usual driver.
    :raises ConfigurationError: if there is no such driver, or the journal is in memory.
    """

    def __init__(self, url: str, *, timeout: float, pooler: Pooler | None = None) -> None:
        super().__init__(url, timeout=timeout, pooled=False, pooler=pooler)
        self._first = threading.Lock()
        #: The engine, once it has opened its first connection.
        self._known: Engine | None = None

    @property
    def asynchronous(self) -> AsyncEngine:
        """This process's engine, for coroutines."""
        engine: AsyncEngine = asyncio_of_sqlalchemy().AsyncEngine(self.engine)
        return engine

    def connect(self) -> Connection:
        """A connection; only in one of SQLAlchemy's greenlets.

        :raises sqlalchemy.exc.SQLAlchemyError: if none can be had.
        """
        engine = self.engine
        if self._known is engine:
            return engine.connect()
        # At its first connection SQLAlchemy asks the server for its version and settings, under a lock that belongs to
        # one event loop and cannot be waited for in another one.
        if not self._first.acquire(timeout=self.timeout):
            raise exc.TimeoutError("another thread does not get its first connection")
        try:
            connection = engine.connect()
            self._known = engine
            return connection
        finally:
            self._first.release()

    def _parse(self, url: str) -> URL:
        given = make_url(url)
        driver, package = _DRIVERS[given.get_backend_name()]
        parsed = given.set(drivername=driver)
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "a transactional step whose operation is a coroutine function has a connection of its own, which "
                "cannot reach a journal in memory (durable_database_url). Put the journal in a file: "
                "'sqlite:///file.db'."
            )
        try:
            parsed.get_dialect(_is_async=True).import_dbapi()
        except ImportError as error:
            raise ConfigurationError(
                "a transactional step whose operation is a coroutine function reaches the journal's database by a "
                f"driver for asyncio, {driver!r}, which is not installed ({error}): pip install '{package}'. Or make "
                "the operation a plain function."
            ) from error
        return parsed

    def _new_engine(self, options: dict[str, Any]) -> Engine:
        return asyncio_of_sqlalchemy().create_async_engine(self.url, **options).sync_engine  # type: ignore[no-any-return]
