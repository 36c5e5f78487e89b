"""How each driver connects: with bounded waits, and as READ COMMITTED."""

from __future__ import annotations

import math
from typing import Any, Final

from sqlalchemy.engine import URL

from .pooler import Limits

__all__ = ["LIBPQ", "how_to_connect"]

#: Drivers that take libpq's parameters.
LIBPQ: Final = frozenset({"psycopg", "psycopg2"})
#: Drivers that can run a statement on MySQL or MariaDB when they connect.
_INIT_COMMANDS: Final = frozenset({"pymysql", "mysqldb", "asyncmy"})
#: MariaDB's limit for idle transactions, as PostgreSQL has one. MySQL has none: it reads this as a comment in a
#: statement that does nothing.
_LET_GO: Final = "SET @celery_durable = 1 /*M!100300 , SESSION idle_transaction_timeout = {} */"


def how_to_connect(url: URL, timeout: float, limits: Limits) -> dict[str, Any]:
    """Options for an engine.

    :param timeout: longest wait for the server, in seconds.
    :param limits: settings for a PostgreSQL server.
    """
    seconds = max(1, round(timeout))
    driver = url.get_driver_name()
    if url.get_backend_name() == "sqlite":
        # isolation_level None: the driver starts no transactions of its own; we send BEGIN IMMEDIATE.
        return {"connect_args": {"timeout": timeout, "isolation_level": None, "check_same_thread": False}}
    options: dict[str, Any] = {}
    if driver in LIBPQ or url.get_backend_name() != "postgresql":
        # With libpq's drivers this is set when a transaction begins; others set it once for the session.
        options["isolation_level"] = "READ COMMITTED"
    if driver in LIBPQ:
        options["connect_args"] = {
            "connect_timeout": seconds,
            "tcp_user_timeout": int(timeout * 1000),
            "options": limits.at_start,
        }
    elif driver == "pymysql":
        options["connect_args"] = {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}
    elif driver == "asyncmy":
        options["connect_args"] = {"connect_timeout": seconds}
    if driver in _INIT_COMMANDS and "init_command" not in url.query:
        options.setdefault("connect_args", {})["init_command"] = _LET_GO.format(math.ceil(timeout))
    return options
