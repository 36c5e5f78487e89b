"""The URL of the journal's database."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from celery_durable.errors import ConfigurationError

__all__ = ["claim_file", "parse_url", "shown"]

#: Parameters of a URL that are secrets, in the words of any driver.
_SECRET: Final = re.compile(r"pass|secret|token|credential|sslkey", re.IGNORECASE)
_IN_TEXT: Final = re.compile(r"([?&][^=&]*(?:pass|secret|token|credential)[^=&]*=)[^&]*", re.IGNORECASE)


def parse_url(url: str) -> URL:
    """The parsed ``durable_database_url``.

    :raises ConfigurationError: when it is no SQLAlchemy URL, or names a database that cannot hold a journal.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Without the original error: both may show the password.
        raise ConfigurationError(
            f"durable_database_url: {_without_user(url)!r} is not a database URL. It looks like "
            "'postgresql+psycopg://user:password@host/name' or 'sqlite:///file.db'."
        ) from None
    backend = parsed.get_backend_name()
    if backend not in {"sqlite", "postgresql", "mysql", "mariadb"}:
        raise ConfigurationError(
            f"durable_database_url: {backend!r} cannot hold a journal; use sqlite, postgresql, mysql or mariadb."
        )
    try:
        dialect = parsed.get_dialect()
        dialect.import_dbapi()
    except (exc.NoSuchModuleError, ImportError) as error:
        raise ConfigurationError(
            f"durable_database_url: the driver of {parsed.drivername!r} is not installed ({error}). Install one and "
            "name it in the URL: pip install 'celery-durable[postgresql]' for 'postgresql+psycopg://...', "
            "pip install 'celery-durable[mysql]' for 'mysql+pymysql://...'."
        ) from error
    if dialect.is_async:
        raise ConfigurationError(
            f"durable_database_url: {parsed.drivername!r} is an asyncio driver. The journal needs a synchronous one, "
            "for async tasks too: 'postgresql+psycopg://...', 'mysql+pymysql://...' or 'sqlite:///file.db'."
        )
    return parsed


def _without_user(url: str) -> str:
    """A malformed URL without the part that may hold a password."""
    _, at, rest = str(url).rpartition("@")
    return _IN_TEXT.sub(r"\1***", f"***@{rest}" if at else str(url))


def shown(url: URL) -> str:
    """A URL for people, without passwords anywhere in it."""
    query = {name: "***" if _SECRET.search(name) else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def claim_file(url: URL) -> None:
    """Create a missing SQLite file so that only its owner can read it: SQLite itself would let everybody. SQLite gives
    its logs the same rights.
    """
    path = url.database
    if not path or path == ":memory:" or path.startswith("file:"):
        return
    with contextlib.suppress(OSError):  # it exists already; or SQLite will report what is wrong with its path
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
