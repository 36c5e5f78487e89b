"""Database servers that tests may stop, crash and freeze."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from tests.support.databases import JournalDatabase, new_database
from tests.support.servers import OwnMariaDB, OwnPostgreSQL, OwnServer

__all__ = ["FRAGILE", "Fragile", "FragileMariaDB", "FragilePostgreSQL", "on_each_server"]


class Fragile(OwnServer):
    """What it has committed reaches the system before its client is told, so that the death of its processes loses
    nothing that was durable. There is no need to wait for the disk.
    """

    #: For SQLAlchemy.
    url: str

    def new_database(self) -> JournalDatabase:
        """An empty one, which ends with the server."""
        admin = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        url = new_database(admin)
        return JournalDatabase(admin.dialect.name, url.render_as_string(hide_password=False), "own")

    def crash(self) -> None:
        """Kill every process of the server at once; :meth:`start` recovers from its log."""
        self._all("kill")
        self.stop()

    def freeze(self) -> None:
        """Stop every process of the server where it stands: connections stay, and nobody answers."""
        self._all("suspend")

    def thaw(self) -> None:
        """Let them go on, not knowing that time has passed."""
        self._all("resume")

    def _all(self, action: str) -> None:
        for process in self._processes():
            # A backend whose client has gone may end in between.
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, action)()

    def _processes(self) -> list[psutil.Process]:
        """The one that starts others first, or there would be new ones."""
        if self._process is None:
            return []
        master = psutil.Process(self._process.pid)
        return [master, *master.children(recursive=True)]


class FragilePostgreSQL(OwnPostgreSQL, Fragile):
    """A PostgreSQL that may be hurt."""

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "-c", "synchronous_commit=on"]

    def leave_unwritten(self) -> None:
        """From now on, write what need not be durable only together with what must be."""
        [writer] = [process for process in self._processes() if "walwriter" in _command_of(process)]
        writer.suspend()


def _command_of(process: psutil.Process) -> str:
    """How it was called; nothing where it has ended in between, as a backend does whose client has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class FragileMariaDB(OwnMariaDB, Fragile):
    """A MariaDB that may be hurt."""


#: Kind of database → the server.
FRAGILE: dict[str, type[Fragile]] = {"postgresql": FragilePostgreSQL, "mysql": FragileMariaDB}

#: A test of the fixture ``server`` runs on each of them, and not on PostgreSQL alone.
on_each_server = pytest.mark.parametrize("server", list(FRAGILE), indirect=True)
