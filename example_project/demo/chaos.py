"""Kills pool processes and whole workers, with the one signal that nobody can catch."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field

from .events import EventLog
from .stage import Actor, Stage


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what it hit."""

    at: float
    #: ``child`` (one pool process) or ``worker`` (a main process with all its pool processes).
    kind: str
    #: Name of the worker.
    worker: str
    pid: int
    #: Ids of the executions that were being run.
    interrupted: tuple[str, ...] = field(default=())


class Chaos:
    """Strikes at random moments, ``every`` seconds on average.

    A pool process is killed while it works on an order: there is nothing to see in the death of an idle one. There
    is also harm in it: Celery's pool hands its idle processes a shared lock where the broker has no event loop, and
    whoever dies with it blocks the others until the whole worker is restarted.
    """

    #: Share of the kills that take a whole worker.
    WORKERS = 0.3

    def __init__(self, stage: Stage, log: EventLog, every: float, seed: int) -> None:
        self.stage = stage
        self.log = log
        self.every = every
        self.kills: list[Kill] = []
        self._rng = random.Random(seed)
        self._next = time.monotonic() + self._pause()

    def _pause(self) -> float:
        return self._rng.uniform(0.4, 1.6) * self.every

    def tick(self) -> None:
        """Strike if it is time."""
        if self.every <= 0 or time.monotonic() < self._next:
            return
        self.log.refresh()
        strike = self._kill_worker if self._rng.random() < self.WORKERS else self._kill_child
        struck = strike()
        # With nobody at work there was nobody to kill; look again soon.
        self._next = time.monotonic() + (self._pause() if struck else 0.05)

    def _busy(self, worker: Actor) -> dict[int, str]:
        """The pool processes of a worker that work on an order, and on which."""
        found = {}
        for pid, execution in self.log.children.items():
            try:
                if execution and os.getpgid(pid) == worker.process.pid:
                    found[pid] = execution
            except ProcessLookupError:
                continue
        return found

    def _kill_worker(self) -> bool:
        worker = self._rng.choice(self.stage.workers)
        busy = self._busy(worker)
        if not busy:
            return False
        self.kills.append(Kill(time.time(), "worker", worker.name, worker.process.pid, tuple(busy.values())))
        worker.kill()
        self.stage.restart(worker)
        return True

    def _kill_child(self) -> bool:
        busy = [(worker, pid, what) for worker in self.stage.workers for pid, what in self._busy(worker).items()]
        if not busy:
            return False
        worker, pid, execution = self._rng.choice(sorted(busy, key=lambda found: found[1]))
        self.kills.append(Kill(time.time(), "child", worker.name, pid, (execution,)))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            self.kills.pop()
            return False
        return True
