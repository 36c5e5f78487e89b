"""Real Celery workers: processes that a test starts, watches, pauses and kills."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from .conf import conf_env
from .wait import eventually

__all__ = ["WorkerFactory", "WorkerProcess"]

#: The checkout: worker processes run in it, so they find the modules of the tests.
ROOT = Path(__file__).resolve().parents[2]

#: Grace before SIGKILL when a test is over, in seconds: none (an idle worker takes seconds for its orderly end), unless
#: coverage is measured, which a killed process cannot report.
_GRACE = 5.0 if "COVERAGE_PROCESS_CONFIG" in os.environ else 0.0


class WorkerProcess:
    """``celery worker`` in a process group of its own, its output in a file.

    :param app: the module, or ``module:attribute``, of the application.
    :param folder: where the log goes.
    :param env: added to this process's environment.
    :param pool: ``prefork``, ``threads``, ``solo``, ``gevent``.
    :param concurrency: number of pool children, threads or greenlets.
    :param name: unique among the workers of a test.
    :param loglevel: at least ``INFO``, for readiness is read from the log.
    :param queues: the queues to consume; the default queue when empty.
    :param args: further words of the command line.
    """

    def __init__(
        self,
        app: str,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        pool: str = "prefork",
        concurrency: int = 1,
        name: str = "worker",
        loglevel: str = "INFO",
        queues: Sequence[str] = (),
        args: Sequence[str] = ("--without-gossip", "--without-mingle"),
    ) -> None:
        self.name = name
        self.hostname = f"{name}-{secrets.token_hex(4)}@test"
        self.log_path = folder / f"{name}.log"
        command = [
            sys.executable, "-m", "celery", "-A", app, "worker", "--hostname", self.hostname,
            "--pool", pool, "--concurrency", str(concurrency), "--loglevel", loglevel,
        ]  # fmt: skip
        if queues:
            command += ["--queues", ",".join(queues)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *args],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        state = "running" if self.alive else f"exit code {self.process.returncode}"
        return f"<worker {self.hostname} pid {self.pid}: {state}>"

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the worker's main process (under prefork: the parent of the pool)."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Does the main process still run?"""
        return self.process.poll() is None

    def children(self) -> list[int]:
        """The direct children of the main process: the pool under prefork, and the recovery service."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def log(self) -> str:
        """Everything written so far."""
        return self.log_path.read_text(errors="replace")

    def await_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until the log contains ``text``; fail at once where the worker ends without it."""

        def written() -> bool:
            ended = not self.alive
            if text in self.log():
                return True
            assert not ended, f"{self!r} ended before it wrote {text!r}:\n{self.log()}"
            return False

        eventually(written, timeout, f"{self!r} did not write {text!r}; its log:\n{self.log()}")

    def await_ready(self, timeout: float = 60.0) -> WorkerProcess:
        """Wait until the worker consumes messages."""
        self.await_log(f"{self.hostname} ready.", timeout)
        return self

    # -- hurting ---------------------------------------------------------------------------------------------

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal to the main process. (On Linux, prefork children die with a parent that was killed.)"""
        self.process.send_signal(sig)

    def kill_child(self, sig: int = signal.SIGKILL, pid: int | None = None) -> int:
        """Send a signal to one child and return its pid.

        :param pid: which; needed where there are several. A task tells its own with ``ledger.fire(...)``.
        """
        children = self.children()
        if pid is None:
            assert len(children) == 1, f"{self!r} has the children {children}: say which one by pid="
            pid = children[0]
        assert pid in children, f"{pid} is no child of {self!r}, those are {children}"
        os.kill(pid, sig)
        return pid

    def crash(self) -> None:
        """Lose the machine: SIGKILL for every process of the worker at once."""
        self._signal_all(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        """Stop every process of the worker where it stands, as a suspended machine does."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused worker go on, not knowing that time has passed."""
        self._signal_all(signal.SIGCONT)

    # -- ending ----------------------------------------------------------------------------------------------

    def stop(self, timeout: float = 30.0, sig: int = signal.SIGTERM) -> int:
        """Ask for an orderly end (SIGTERM: finish what runs; SIGQUIT: do not) and return the exit code."""
        if self.alive:
            self.process.send_signal(sig)
        return self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code, once there is one."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end within {timeout:g} s; its log:\n{self.log()}") from None

    def end(self) -> None:
        """Leave nothing behind: SIGKILL for the whole group, after an orderly end where there is time for one."""
        if self.alive and _GRACE:
            self.resume()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                pass
        self._signal_all(signal.SIGKILL)
        self.process.wait()

    def _signal_all(self, sig: int) -> None:
        try:
            # The group outlives its leader as long as it has a member; its id is not given away before that.
            os.killpg(self.pid, sig)
        except ProcessLookupError:
            pass


class WorkerFactory:
    """Starts workers for one test, and ends them with it.

    :param folder: of the test, for the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.started: list[WorkerProcess] = []
        self._folder = folder
        self._numbers = itertools.count(1)

    def __call__(
        self,
        app: str,
        *confs: Mapping[str, Any],
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        ready: bool = True,
        **options: Any,
    ) -> WorkerProcess:
        """Start a worker on an application that was made with :func:`tests.support.conf.configure`.

        :param confs: settings, such as ``broker.conf`` and ``database.conf``.
        :param conf: more of them, which win.
        :param ready: return when the worker consumes messages, not before.
        :param options: for :class:`WorkerProcess`.
        """
        worker = WorkerProcess(
            app,
            self._folder,
            env={**conf_env(*confs, conf or {}), **(env or {})},
            name=name or f"worker{next(self._numbers)}",
            **options,
        )
        self.started.append(worker)
        return worker.await_ready() if ready else worker

    def end(self) -> None:
        """End all that still runs."""
        for worker in self.started:
            worker.end()

    def logs(self, lines: int = 200) -> list[tuple[str, str]]:
        """Name and last lines of each worker's log, for the report of a failed test."""
        return [
            (f"log of {worker!r}", "\n".join(worker.log().splitlines()[-lines:]))
            for worker in self.started
            if worker.log_path.exists()
        ]
