"""The journal's schema: numbered Alembic scripts in the package, run without an ini file.

The version table has a name of its own, so that the journal can share a database with an application's own Alembic.

Only :mod:`.running` imports Alembic, and only when something has to be done: :func:`ensure` runs at the start of every
process, and usually costs one query.
"""

from __future__ import annotations

from typing import Final, TextIO

from sqlalchemy.engine import Engine

from celery_durable.errors import SchemaError

from ..urls import shown
from .revisions import VERSION_TABLE, current, head, is_current, known

__all__ = ["VERSION_TABLE", "current", "downgrade", "ensure", "head", "is_current", "upgrade"]

_CURE: Final = "celery -A <your app> durable upgrade"


def ensure(engine: Engine, create: bool) -> None:
    """Verify that the tables are of this version; with ``create`` make them so.

    Any number of processes and threads may do this at once.

    :raises SchemaError: says what is wrong and which command fixes it.
    """
    found = current(engine)
    if found == head():
        return
    where = shown(engine.url)
    if found is not None and found not in known():
        raise SchemaError(
            f"the journal's tables in {where} have revision {found!r}, which this version of celery_durable does not "
            f"know (it needs {head()!r}). A newer version has upgraded them: upgrade celery_durable here too."
        )
    if create:
        upgrade(engine)
    elif found is None:
        raise SchemaError(f"the journal's tables are missing in {where}. Create them with: {_CURE}")
    else:
        raise SchemaError(
            f"the journal's tables in {where} have revision {found!r}, this version of celery_durable needs "
            f"{head()!r}. Upgrade them with: {_CURE}"
        )


def upgrade(database: str | Engine, revision: str = "head", *, sql: bool = False, output: TextIO | None = None) -> None:
    """Bring the tables to a revision. Processes that do it at the same time wait for each other.

    :param database: an engine, or a ``durable_database_url``.
    :param sql: write the statements to ``output`` (default: standard output) instead of running them; nothing is
        connected to.
    :raises ConfigurationError: when ``database`` is text and no URL that could hold a journal.
    :raises SchemaError: when another process migrates and does not end.
    """
    from .running import run

    run("upgrade", database, revision, sql, output)


def downgrade(database: str | Engine, revision: str, *, sql: bool = False, output: TextIO | None = None) -> None:
    """Take the tables back to a revision, ``base`` for none; parameters as in :func:`upgrade`.

    For ``sql`` the revision is a range, such as ``0002:0001``.
    """
    from .running import run

    run("downgrade", database, revision, sql, output)
