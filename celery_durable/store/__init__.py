"""The journal's store: SQLAlchemy Core on SQLite, PostgreSQL, MySQL and MariaDB. It knows no Celery."""

from __future__ import annotations

from .database import Database
from .journal import Journal
from .operations import Operations
from .outbox import OutboxStore
from .ownership import Ownership
from .promises.promises import Promises
from .recovery import RecoveryStore
from .retention import RetentionStore

__all__ = [
    "Database",
    "Journal",
    "Operations",
    "OutboxStore",
    "Ownership",
    "Promises",
    "RecoveryStore",
    "RetentionStore",
]
