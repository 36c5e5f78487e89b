"""On what a run was measured: without it, its figures say nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa

from tests.support.databases import JournalDatabase

__all__ = ["database_facts", "facts", "warnings_of"]

_LIBRARIES = ("celery-durable", "celery", "kombu", "sqlalchemy", "psycopg", "pymysql")

#: What decides whether a commit reaches the disk.
_DURABILITY = {
    "sqlite": (),
    "postgresql": ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method"),
    "mysql": ("innodb_flush_log_at_trx_commit", "sync_binlog", "log_bin"),
}


def facts() -> dict[str, str]:
    """Of this machine and this Python."""
    return {
        "processor": f"{os.cpu_count()} × {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: version(name) for name in _LIBRARIES},
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def database_facts(database: JournalDatabase) -> dict[str, str]:
    """The server's version, and what it promises at a commit."""
    found = {"version": database.version}
    if database.kind == "sqlite":
        return {**found, "journal_mode": "wal", "synchronous": "full"}
    engine = database.engine(poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        for name in _DURABILITY[database.kind]:
            if database.kind == "postgresql":
                found[name] = str(connection.execute(sa.text(f"SHOW {name}")).scalar_one())
            else:
                found[name] = str(connection.execute(sa.text(f"SHOW VARIABLES LIKE '{name}'")).one()[1])
    return found


def warnings_of(facts: dict[str, str], databases: dict[str, dict[str, str]]) -> list[str]:
    """What makes figures worth less.

    :param facts: of the machine, taken before the run began.
    """
    found = []
    cores = os.cpu_count() or 1
    if float(facts["load at the start"]) > cores / 4:
        found.append("the machine was busy with something else at the start")
    if databases.get("postgresql", {}).get("fsync") == "off":
        found.append("this PostgreSQL does not sync its commits (fsync = off): they are cheaper than they should be")
    if databases.get("mysql", {}).get("innodb_flush_log_at_trx_commit", "1") != "1":
        found.append("this MySQL does not sync every commit: they are cheaper than they should be")
    return found
