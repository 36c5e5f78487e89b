"""The URL of the journal's database."""

from __future__ import annotations

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from ..errors import ConfigurationError

__all__ = ["parse_url"]


def parse_url(url: str) -> URL:
    """The parsed ``durable_database_url``.

    :raises ConfigurationError: when it is no SQLAlchemy URL, or names a database that cannot hold a journal.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Not the cause either: both may show the password.
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
            f"durable_database_url: {parsed.drivername!r} is a driver for asyncio. The journal needs one that is not, "
            "also for async tasks: 'postgresql+psycopg://...', 'mysql+pymysql://...' or 'sqlite:///file.db'."
        )
    return parsed


def _without_user(url: str) -> str:
    """Text that may hold a password, where nobody knows where it begins."""
    _, at, rest = str(url).rpartition("@")
    return f"***@{rest}" if at else str(url)
