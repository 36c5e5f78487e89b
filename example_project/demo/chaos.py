"""Kills pool processes and whole workers, with the one signal that nobody can catch."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter

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
    #: Ids of the executions that were being run, and to which order's execution each of them belongs.
    interrupted: tuple[str, ...] = field(default=())
    orders: tuple[str, ...] = field(default=())


class Chaos:
    """Strikes at random moments, ``every`` seconds on average.

    A pool process is killed while it works on an order: there is nothing to see in the death of an idle one. There
    is also harm in it: Celery's pool hands its idle processes a shared lock where the broker has no event loop, and
    whoever dies with it blocks the others until the whole worker is restarted.
    """

    #: Share of the kills that take a whole worker.
    WORKERS = 0.3
    #: An order that was hit this often is left in peace: the last one would otherwise be hit by every kill.
    ENOUGH = 4

    def __init__(self, stage: Stage, log: EventLog, every: float, seed: int) -> None:
        self.stage = stage
        self.log = log
        self.every = every
        self.kills: list[Kill] = []
        self._hits: Counter[str] = Counter()
        self._dead: set[int] = set()
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
            # A process that was killed keeps its number until the worker notices.
            if not execution or pid in self._dead:
                continue
            try:
                if os.getpgid(pid) == worker.process.pid:
                    found[pid] = execution
            except ProcessLookupError:
                continue
        return found

    def _spared(self, execution: str) -> bool:
        return self._hits[self.log.orders[execution]] >= self.ENOUGH

    def _note(self, kind: str, worker: Actor, pid: int, interrupted: dict[int, str]) -> None:
        executions = tuple(interrupted.values())
        orders = tuple(self.log.orders[execution] for execution in executions)
        self.kills.append(Kill(time.time(), kind, worker.name, pid, executions, orders))
        self._hits.update(orders)
        self._dead.update(interrupted)

    def _kill_worker(self) -> bool:
        worker = self._rng.choice(self.stage.workers)
        busy = self._busy(worker)
        if not busy or any(map(self._spared, busy.values())):
            return False
        self._note("worker", worker, worker.process.pid, busy)
        worker.kill()
        self.stage.restart(worker)
        return True

    def _kill_child(self) -> bool:
        busy = [(pid, what, worker) for worker in self.stage.workers for pid, what in self._busy(worker).items()]
        victims = [victim for victim in busy if not self._spared(victim[1])]
        if not victims:
            return False
        pid, execution, worker = self._rng.choice(sorted(victims, key=itemgetter(0)))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._note("child", worker, pid, {pid: execution})
        return True
