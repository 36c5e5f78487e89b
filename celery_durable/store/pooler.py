"""A pooler between this process and a PostgreSQL server, such as PgBouncer in transaction mode.

Each transaction may get another of the server's sessions. So no statement may depend on what an earlier transaction
left in a session: no parameters at its start, no prepared statements, no settings except a transaction's own.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["POOLERS", "Limits", "Pooler", "given_options"]

logger = logging.getLogger(__name__)

#: Values of ``durable_pooler``.
POOLERS: Final = ("auto", "transaction", "none")
_READ_COMMITTED: Final = ("-c default_transaction_isolation=read\\ committed",)
#: How PgBouncer refuses a session that begins with settings of its own.
_REFUSED: Final = "unsupported startup parameter"


class Limits:
    """How long a server waits for this process, or for other transactions.

    :param seconds: the limit for one statement, and for an idle transaction.
    :param given: further settings of a session, from the URL.
    """

    def __init__(self, seconds: float, given: str) -> None:
        self.given = given
        milliseconds = int(seconds * 1000)
        settings = {
            "statement_timeout": milliseconds,
            # A process that is idle in a transaction, or has lost the server, loses its locks: others wait for the same
            # rows.
            "idle_in_transaction_session_timeout": milliseconds,
        }
        #: libpq's parameter. The URL's settings are kept: they may name the schema of the tables.
        told = [*(f"-c {name}={value}" for name, value in settings.items()), *_READ_COMMITTED]
        self.at_start = " ".join([given, *told])
        #: The same for one transaction. This takes no snapshot, so the isolation level can still be set after it.
        self.at_begin = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())
        #: The same as a single statement.
        self.alone = "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())


class Pooler:
    """Whether there is a pooler that shares the server's sessions among clients, and what that changes.

    :param setting: one of :data:`POOLERS`. ``auto``: it is detected, because it tells clients a process id that is not
        the server's, and refuses settings at the start of a session.
    """

    def __init__(self, setting: str = "auto") -> None:
        self.setting = setting
        #: True if there is known to be one.
        self.between = setting == "transaction"
        self._known = setting != "auto"

    def found(self) -> None:
        """Note that there is a pooler, as the server's answers show."""
        if self.between or self.setting == "none":
            return
        self.between = self._known = True
        logger.info(
            "there is a pooler between this process and the journal's database, so the process has no session of its "
            "own"
        )

    def attend(self, engine: Engine, limits: Limits, *, transactions: bool) -> None:
        """Prepare the connections of an engine whose driver uses libpq.

        :param transactions: False for an engine in autocommit mode.
        """
        event.listen(engine, "connect", self._look)
        if transactions:

            @event.listens_for(engine, "begin")
            def begin(connection: Connection) -> None:
                if self.between and connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                    # Without parameters, so that it may be two statements.
                    connection.exec_driver_sql(limits.at_begin, execution_options={"no_parameters": True})

    def connect(self, limits: Limits, dialect: Any, args: Any, parameters: Any) -> Any:
        """A new connection of the driver."""
        if not self.between:
            try:
                return dialect.connect(*args, **parameters)
            except dialect.loaded_dbapi.Error as error:
                if self.setting == "none" or _REFUSED not in str(error):
                    raise
                self.found()
        plain = {name: value for name, value in parameters.items() if name != "options"}
        return dialect.connect(*args, **plain, **({"options": limits.given} if limits.given else {}))

    def _look(self, connection: Any, record: Any) -> None:
        driver = getattr(connection, "driver_connection", connection)
        if not self._known:
            if is_between(connection, driver):
                self.found()
            self._known = True
        if self.between and hasattr(driver, "prepare_threshold"):
            driver.prepare_threshold = None


def is_between(connection: Any, driver: Any) -> bool:
    """Whether the server's process differs from the one that the driver was told.

    :param connection: a connection of the driver, in no transaction.
    :param driver: the same, without SQLAlchemy's wrapper for asyncio drivers.
    """
    told = driver.info.backend_pid if hasattr(driver, "info") else driver.get_backend_pid()
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    [found] = cursor.fetchone()
    cursor.close()
    connection.rollback()
    return bool(told != found)


def given_options(url: URL) -> str:
    """The settings for each session in a URL (``?options=``)."""
    value = url.query.get("options", "")
    return value if isinstance(value, str) else " ".join(value)
