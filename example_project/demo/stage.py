"""Starts the processes of the demo, keeps them running, and leaves none behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from ..config import ROOT
from .events import VARIABLE

SERVICES = ("gateway", "carrier", "mailer", "desk")
#: The world outside misbehaves; the front desk is the shop's own.
OUTSIDE = SERVICES[:3]


class StageError(RuntimeError):
    """Something did not start; the message says what, and where its log is."""


@dataclass
class Actor:
    """One process of the demo, the leader of a process group of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _killed: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to it and everything that it started."""
        # The group is named like its leader, and outlives it as long as it has members.
        send = os.killpg if group else os.kill
        with contextlib.suppress(ProcessLookupError):
            send(self.process.pid, number)

    def kill(self) -> None:
        """End the process and everything that it started, at once."""
        # Once it is reaped and its group is empty, its number may belong to somebody else.
        if not self._killed:
            self.signal(signal.SIGKILL, group=True)
            self.process.wait()
            self._killed = True


class Stage:
    """The services and workers. A context manager: whatever happens, nothing is left running behind it."""

    def __init__(self, directory: Path, env: dict[str, str], concurrency: int, seed: int) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.env = {**os.environ, **env, "PYTHONUNBUFFERED": "1", VARIABLE: str(directory / "events.jsonl")}
        # Workers must find the shop wherever the demo was started.
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.concurrency = concurrency
        self.seed = seed
        self.services: list[Actor] = []
        self.workers: list[Actor] = []
        #: Names of workers that ended although nobody killed them.
        self.lost_workers: list[str] = []
        self._started: list[Actor] = []
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Stage:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # A second Ctrl-C must not interrupt the clearing up.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with self._lock:
            self._closed = True
            for actor in self._started:
                actor.kill()
        signal.signal(signal.SIGINT, previous)

    def _start(self, name: str, module: str, *arguments: str) -> Actor:
        log = self.logs / f"{name}.log"
        with self._lock:
            if self._closed:
                raise StageError("the demo is over")
            with log.open("ab") as output:
                actor = Actor(name, self._spawn([sys.executable, "-m", module, *arguments], output), log)
            self._started.append(actor)
        return actor

    def _spawn(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches the demo only, which then ends the others in order.
            start_new_session=True,
        )

    def start_services(self, latency: tuple[float, float], down: float, slow: float) -> dict[str, str]:
        """Start the services; return their addresses, by the variable that the shop reads."""
        faults = ["--latency", *map(str, latency), "--down", str(down), "--slow", str(slow)]
        for number, name in enumerate(SERVICES):
            files = ["--ledger", str(self.directory / f"{name}.db"), "--url-file", str(self.directory / f"{name}.url")]
            behaviour = [*faults, "--seed", str(self.seed * 10 + number)] if name in OUTSIDE else []
            module = f"example_project.services.{name}"
            self.services.append(self._start(name, module, "--port", "0", *files, *behaviour))
        for actor in self.services:
            self._wait_for(actor, self.directory / f"{actor.name}.url")
        urls = {f"{name.upper()}_URL": (self.directory / f"{name}.url").read_text() for name in SERVICES}
        self.env.update(urls)
        return urls

    def _wait_for(self, actor: Actor, file: Path, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not file.exists():
            if not actor.alive or time.monotonic() > deadline:
                raise StageError(f"the {actor.name} did not start; its log is {actor.log}")
            time.sleep(0.05)

    def upgrade_journal(self) -> None:
        """Create the journal's tables where the library does not do it on first use."""
        log = self.logs / "upgrade.log"
        command = [sys.executable, "-m", "celery", "-A", "example_project.app", "durable", "upgrade"]
        with log.open("ab") as output:
            if self._spawn(command, output).wait(timeout=60):
                raise StageError(f"the journal's tables could not be made; is DATABASE right? The log is {log}")

    def start_workers(self, count: int) -> None:
        """Start the shop's workers."""
        self.workers = [self._worker(f"worker{number}") for number in range(1, count + 1)]

    def _worker(self, name: str) -> Actor:
        options = ["--hostname", f"{name}@%h", "--pool", "prefork", "--concurrency", str(self.concurrency)]
        chatter = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
        probe = ["--include", "example_project.demo.probe"]
        return self._start(name, "celery", "-A", "example_project.app", "worker", *options, *chatter, *probe)

    def restart(self, worker: Actor) -> None:
        """Start a dead worker again, as any supervisor would."""
        self.workers[self.workers.index(worker)] = self._worker(worker.name)

    def restart_the_dead(self) -> None:
        """Start every worker again that ended by itself, and remember that it did."""
        for worker in [worker for worker in self.workers if not worker.alive]:
            self.lost_workers.append(worker.name)
            # Its pool processes may outlive it; a supervisor ends the whole group first.
            worker.kill()
            self.restart(worker)

    def stop_workers(self, seconds: float = 10) -> None:
        """Let the workers finish what they do (a warm shutdown)."""
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while any(worker.alive for worker in self.workers) and time.monotonic() < deadline:
            time.sleep(0.05)
