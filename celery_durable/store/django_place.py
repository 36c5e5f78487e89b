"""Where the journal is in a Django project: in one of its databases, and in a test run in its test database.

``durable_database_url = "django://default"`` says that the journal is in the database of an alias. In a run of Django's
tests that is not the production database, and any other URL is changed in the same way: what a test does must never
appear in the real journal. Django is imported only when it is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import sqlalchemy as sa
from sqlalchemy.engine import URL

from celery_durable.errors import ConfigurationError

__all__ = [
    "IN_MEMORY",
    "SCHEME",
    "alias_at",
    "borrowed_from_test",
    "connection_of_alias",
    "in_test_case",
    "resolve",
    "running",
    "turn_of",
    "under_test",
    "url_of",
]

logger = logging.getLogger(__name__)

#: Begins a ``durable_database_url`` that names an alias of Django's.
SCHEME: Final = "django://"
#: A journal that exists only as long as its process.
IN_MEMORY: Final = "sqlite://"

#: Options of a connection that only Django understands, not the drivers.
_DJANGOS: Final = frozenset({"isolation_level", "pool", "server_side_binding", "assume_role", "transaction_mode"})
_LOCAL: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
_PORTS: Final = {"postgresql": 5432, "mysql": 3306}


def under_test() -> bool:
    """Whether this process runs Django tests, by Django's runner or pytest-django."""
    utils = sys.modules.get("django.test.utils")
    # Set by setup_test_environment(), deleted by teardown_test_environment().
    return utils is not None and hasattr(getattr(utils, "_TestState", None), "saved_data")


def resolve(url: str) -> str:
    """The URL of the journal, as ``durable_database_url`` means it in this process at this moment.

    In a test run it leads to a test database: that of the alias to which it leads otherwise, or one whose own name
    begins with ``test``. If there is none, the journal is in memory.

    :raises ConfigurationError: for an unknown alias, or one whose database cannot hold a journal.
    """
    if url.startswith(SCHEME):
        alias = url[len(SCHEME) :].strip("/") or "default"
        if under_test() and not _leads_to_test(alias):
            return IN_MEMORY
        return url_of(alias)
    if not under_test():
        return url
    try:
        given = sa.make_url(url)
    except Exception:
        return url  # its error is raised where URLs are checked
    for alias in _aliases():
        if _is_same(given, alias):
            return url_of(alias) if _leads_to_test(alias) else IN_MEMORY
    name = Path(given.database or "").name
    if not name or name == ":memory:" or name.startswith("test"):
        return url
    logger.info(
        "a test run must not touch the journal in %s, which is in no database of DATABASES: it is in memory",
        given.render_as_string(hide_password=True),
    )
    return IN_MEMORY


def alias_at(url: str) -> str | None:
    """In a test run, the alias whose test database a resolved URL leads to; None for any other."""
    if not under_test():
        return None
    return next((alias for alias in _aliases() if _leads_to_test(alias) and url_of(alias) == url), None)


def connection_of_alias(alias: str) -> Any:
    """Django's connection of this thread.

    :raises ConfigurationError: if there is no such alias.
    """
    from django.db import connections
    from django.utils.connection import ConnectionDoesNotExist

    try:
        return connections[alias]
    except ConnectionDoesNotExist as error:
        known = ", ".join(repr(one) for one in connections)
        raise ConfigurationError(f"{alias!r} is no alias of Django's DATABASES, which are {known}.") from error


def url_of(alias: str) -> str:
    """An alias of ``DATABASES`` as SQLAlchemy would write it.

    :raises ConfigurationError: for a kind of database that cannot hold a journal.
    """
    wrapper = connection_of_alias(alias)
    settings = wrapper.settings_dict
    name, options = str(settings["NAME"]), settings.get("OPTIONS") or {}
    if wrapper.vendor == "sqlite":
        return _of_sqlite(name).render_as_string(hide_password=False)
    if wrapper.vendor not in ("postgresql", "mysql"):
        raise ConfigurationError(
            f"DATABASES[{alias!r}] is {wrapper.vendor}, which cannot hold a journal; use sqlite, postgresql, mysql or "
            "mariadb."
        )
    host: str | None = settings.get("HOST") or None
    query: dict[str, str] = {key: str(value) for key, value in options.items() if _is_plain(key, value)}
    if wrapper.vendor == "mysql":
        query.setdefault("charset", "utf8mb4")
        for key, value in (options.get("ssl") or {}).items():
            query[f"ssl_{key}"] = str(value)
        if host is not None and host.startswith("/"):
            query["unix_socket"], host = host, None
    elif host is not None and host.startswith("/"):
        query["host"], host = host, None
    return URL.create(
        f"{wrapper.vendor}+{_driver(wrapper)}",
        username=settings.get("USER") or None,
        password=settings.get("PASSWORD") or None,
        host=host,
        port=int(settings["PORT"]) if settings.get("PORT") else None,
        database=name or None,
        query=query,
    ).render_as_string(hide_password=False)


def _of_sqlite(name: str) -> URL:
    if not name.startswith("file:"):
        return URL.create("sqlite", database=name if name == ":memory:" else os.path.abspath(name))
    path, _, query = name.partition("?")
    return URL.create("sqlite", database=path, query={**dict(parse_qsl(query)), "uri": "true"})


def _driver(wrapper: Any) -> str:
    """SQLAlchemy's name for Django's driver."""
    module = str(wrapper.Database.__name__)
    return {"MySQLdb": "mysqldb"}.get(module, module)


def _is_plain(key: str, value: Any) -> bool:
    return key not in _DJANGOS and isinstance(value, (str, int)) and not isinstance(value, bool)


def _aliases() -> list[str]:
    from django.db import connections

    usable = [alias for alias in connections if connections[alias].vendor in ("sqlite", "postgresql", "mysql")]
    return sorted(usable, key=lambda alias: alias != "default")


def in_test_case(wrapper: Any) -> bool:
    """Whether one of Django's connections is in a transaction that a ``TestCase`` has begun, and will roll back."""
    return bool(wrapper.in_atomic_block and wrapper.atomic_blocks and wrapper.atomic_blocks[0]._from_testcase)


#: In test runs: connection of the thread that began the eager execution that runs here, perhaps in another thread.
running: ContextVar[Any] = ContextVar("celery_durable_django_test", default=None)
#: Django's connection -> lock of the threads that use it.
_turns: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


def turn_of(wrapper: Any) -> threading.RLock:
    """The lock of a connection that several threads use."""
    return _turns.setdefault(wrapper, threading.RLock())


@contextlib.contextmanager
def borrowed_from_test(alias: str) -> Iterator[bool]:
    """If an execution in a ``TestCase`` works in another thread, give that thread the test's connection: its own one
    would not be in the test's transaction.
    """
    wrapper = running.get()
    borrows = wrapper is not None and wrapper.alias == alias and in_test_case(wrapper)
    if not borrows or connection_of_alias(alias) is wrapper:
        yield False
        return
    from django.db import connections

    own = connections[alias]
    with turn_of(wrapper):
        wrapper.inc_thread_sharing()
        connections[alias] = wrapper
        try:
            yield True
        finally:
            connections[alias] = own
            wrapper.dec_thread_sharing()


# -- a test run ---------------------------------------------------------------------------------------------------


def _leads_to_test(alias: str) -> bool:
    """Whether an alias leads to a test database that this test may use.

    Django changes the database name of the alias when it has made one. Tests that declare no database may use none.
    """
    wrapper = connection_of_alias(alias)
    if _is_refused(wrapper):
        return False
    settings = wrapper.settings_dict
    name, chosen = str(settings["NAME"]), (settings.get("TEST") or {}).get("NAME")
    if wrapper.vendor == "sqlite":
        if name == ":memory:" or "mode=memory" in name:
            return True
        # Each process of a parallel run has a clone: "test.sqlite3" and "test_1.sqlite3".
        return bool(chosen) and name.startswith(os.path.splitext(str(chosen))[0])
    return name.startswith(str(chosen or "test_"))


def _is_refused(wrapper: Any) -> bool:
    """Whether ``SimpleTestCase``, or pytest-django without its mark, blocks a connection."""
    return (
        type(wrapper.connect).__name__ == "_DatabaseFailure"
        or str(getattr(wrapper.ensure_connection, "__module__", "")).partition(".")[0] == "pytest_django"
    )


def _is_same(given: URL, alias: str) -> bool:
    """Whether a URL leads where an alias led before Django gave it the name of a test database.

    For SQLite's files, and if the test database has a name of its own in the settings, the original name is no longer
    known: then any database on the same server counts.
    """
    wrapper = connection_of_alias(alias)
    backend = {"mariadb": "mysql"}.get(given.get_backend_name(), given.get_backend_name())
    if wrapper.vendor != backend:
        return False
    settings = wrapper.settings_dict
    name, chosen = str(settings["NAME"]), (settings.get("TEST") or {}).get("NAME")
    if backend == "sqlite":
        if given.database in (None, "", ":memory:"):
            return False
        return _leads_to_test(alias) or os.path.realpath(name) == os.path.realpath(str(given.database))
    if _server(given.host, given.port, backend) != _server(settings.get("HOST"), settings.get("PORT"), backend):
        return False
    if name == given.database:
        return True
    return name.startswith(str(chosen) if chosen else f"test_{given.database}")


def _server(host: Any, port: Any, backend: str) -> tuple[str, int]:
    text = str(host or "")
    return "" if text in _LOCAL else text, int(port or _PORTS[backend])
