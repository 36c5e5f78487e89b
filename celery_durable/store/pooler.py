"""A pooler between this process and a PostgreSQL server, such as PgBouncer in transaction mode.

It gives a session of the server to each transaction in turn. So no statement may depend on what an earlier transaction
left in a session: no parameters at its start, no prepared statements, no settings except a transaction's own.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["POOLERS", "Limits", "Pooler", "given_options"]

logger = logging.getLogger(__name__)

#: What ``durable_pooler`` may say.
POOLERS: Final = ("auto", "transaction", "none")
_READ_COMMITTED: Final = ("-c default_transaction_isolation=read\\ committed",)
#: How PgBouncer refuses a session that begins with settings of its own.
_REFUSED: Final = "unsupported startup parameter"


class Limits:
    """How long a server waits for this process, or for other transactions.

    :param seconds: the limit for one statement, and for a transaction that stands still.
    :param given: what the URL asks of each session besides.
    """

    def __init__(self, seconds: float, given: str) -> None:
        self.given = given
        milliseconds = int(seconds * 1000)
        settings = {
            "statement_timeout": milliseconds,
            # Who stands still in a transaction, or is cut off from the server there, loses its locks: others wait for
            # the same rows.
            "idle_in_transaction_session_timeout": milliseconds,
        }
        #: libpq's parameter. What the URL asks for comes first, for it may say in which schema the tables are.
        told = [*(f"-c {name}={value}" for name, value in settings.items()), *_READ_COMMITTED]
        self.at_start = " ".join([given, *told])
        #: The same for one transaction. Neither takes a snapshot, before which a transaction may be told its isolation.
        self.at_begin = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())
        #: The same where a statement has to come alone.
        self.alone = "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())


class Pooler:
    """Whether there is a pooler that hands the server's sessions round, and what that changes.

    :param setting: one of :data:`POOLERS`. ``auto``: it is recognised. Its clients are told the number of a server's
        process that is none, and it refuses settings at the start of a session.
    """

    def __init__(self, setting: str = "auto") -> None:
        self.setting = setting
        #: True where it is known that there is one.
        self.between = setting == "transaction"
        self._known = setting != "auto"

    def found(self) -> None:
        """There is one, as the server's answers tell."""
        if self.between or self.setting == "none":
            return
        self.between = self._known = True
        logger.info(
            "there is a pooler between this process and the journal's database, so the process has no session of its "
            "own"
        )

    def attend(self, engine: Engine, limits: Limits, *, transactions: bool) -> None:
        """Look after the connections of an engine whose driver is libpq's.

        :param transactions: False for one whose statements stand for themselves.
        """
        event.listen(engine, "connect", self._look)
        if transactions:

            @event.listens_for(engine, "begin")
            def begin(connection: Connection) -> None:
                if self.between and connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                    # Without parameters, so that it may be two statements.
                    connection.exec_driver_sql(limits.at_begin, execution_options={"no_parameters": True})

    def connect(self, limits: Limits, dialect: Any, args: Any, parameters: Any) -> Any:
        """A new connection of the driver's."""
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
    """Whether the server's process is another one than the driver was told.

    :param connection: of the driver's, in no transaction.
    :param driver: the same, without what SQLAlchemy puts around drivers for asyncio.
    """
    told = driver.info.backend_pid if hasattr(driver, "info") else driver.get_backend_pid()
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    [found] = cursor.fetchone()
    cursor.close()
    connection.rollback()
    return bool(told != found)


def given_options(url: URL) -> str:
    """What a URL asks of each session (``?options=``)."""
    value = url.query.get("options", "")
    return value if isinstance(value, str) else " ".join(value)
