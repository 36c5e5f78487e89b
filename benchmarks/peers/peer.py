"""A peer's program, seen from the benchmark: a process that is asked for one measurement at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment
from .environment import NotInstallable

__all__ = ["PEERS", "Peer", "Program"]


@dataclass(frozen=True)
class Peer:
    """How a peer is installed and started."""

    #: As it is called on the command line and in the report.
    name: str
    #: The Python packages of its program; the first one is the peer.
    requirements: tuple[str, ...]
    #: True where it keeps its state in PostgreSQL.
    on_postgresql: bool = True
    #: The npm package that brings its server.
    server: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("dbos", ("dbos", "psycopg[binary]")),
        Peer("absurd", ("absurd-sdk", "absurdctl", "psycopg[binary]")),
        Peer("restate", ("restate-sdk", "hypercorn"), on_postgresql=False, server="@restatedev/restate-server"),
    )
}


class Program:
    """The running program of a peer.

    :param database: a libpq URL, for peers that want one; the database is empty and theirs.
    :raises NotInstallable: when it cannot be installed, or does not start.
    """

    def __init__(self, peer: Peer, database: str, folder: Path, progress: Callable[[str], None]) -> None:
        self.peer = peer
        python = environment.python_environment(peer.name, peer.requirements, progress)
        self.version = environment.installed_version(python, peer.requirements[0])
        env = {**os.environ, "BENCH_DATABASE": database, "DO_NOT_TRACK": "1"}
        if peer.server:
            env["BENCH_RESTATE"] = str(_server(peer, progress))
        self._log = folder / f"{peer.name}.log"
        with self._log.open("wb") as log:
            # -I: a file named like the package beside the program must not hide the package.
            self._process = subprocess.Popen(
                [python, "-I", Path(__file__).with_name(f"{peer.name}.py")],
                cwd=folder,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._read()

    def ask(self, steps: int) -> dict[str, float]:
        """Run a body of so many steps, then replay it: seconds inside the body, as ``first`` and ``replay``."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"steps": steps}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # what it said last is told below
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last = " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])
            raise NotInstallable(f"its program ended with code {self._process.returncode}: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the program, and with it the server that it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()


def _server(peer: Peer, progress: Callable[[str], None]) -> Path:
    folder = environment.node_environment(f"{peer.name}-server", peer.server, progress)
    found = sorted(folder.glob(f"node_modules/{peer.server}-*/bin/*"))
    if not found:
        raise NotInstallable(f"{peer.server} has no program for this machine")
    return found[0]
