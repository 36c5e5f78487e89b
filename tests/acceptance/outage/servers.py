"""A PostgreSQL that tests may stop, crash and freeze."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.servers import OwnPostgreSQL

__all__ = ["FragilePostgreSQL"]


class FragilePostgreSQL(OwnPostgreSQL):
    """What it has committed reaches the system before its client is told, so that the death of its processes loses
    nothing that was durable. There is no need to wait for the disk.
    """

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "-c", "synchronous_commit=on"]

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

    def leave_unwritten(self) -> None:
        """From now on, write what need not be durable only together with what must be."""
        [writer] = [process for process in self._processes() if "walwriter" in " ".join(process.cmdline())]
        writer.suspend()

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
