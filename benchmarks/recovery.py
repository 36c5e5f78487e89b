"""How long an execution stands still when its process, or its whole worker, is killed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

from .harness import Case, Note
from .stage import Stage

__all__ = ["KILLED_PROCESS", "KILLED_WORKER", "LEASE", "cases"]

KILLED_PROCESS = "killed pool process to next step"
KILLED_WORKER = "killed worker to next step, beyond the lease"

#: ``durable_lease_timeout`` where whole workers are killed, in seconds. The default, 30, would only be waited for.
LEASE = 2.0
_PATIENCE = 120.0


class _Victims:
    """Executions that wait to be killed."""

    def __init__(self, stage: Stage, prefix: str) -> None:
        self._stage = stage
        self._ids = (f"{prefix}-{number}" for number in itertools.count(1))

    def next(self) -> tuple[str, int]:
        """A new one that runs: its id, and its process."""
        execution = next(self._ids)
        self._stage.send("killed", task_id=execution)
        return execution, int(self._await("holding", execution)["pid"])

    def went_on(self, execution: str) -> float:
        """When it did its next step, in seconds since 1970."""
        return float(self._await("went on", execution)["at"])

    def _await(self, event: str, execution: str) -> dict[str, Any]:
        ledger = self._stage.ledger
        happened = eventually(lambda: ledger.entries(event, execution=execution), _PATIENCE, f"{execution}: no {event}")
        return happened[0]


def killed_process(stage: Stage) -> Case:
    """One of the worker's processes is killed; it has no other, so the next one is yet to be started."""
    victims = _Victims(stage, "process")
    stage.worker(concurrency=1)

    def turn(note: Note) -> None:
        execution, pid = victims.next()
        killed_at = time.time()
        os.kill(pid, signal.SIGKILL)
        note(KILLED_PROCESS, victims.went_on(execution) - killed_at)

    return Case({KILLED_PROCESS: "s"}, turn)


def killed_worker(stage: Stage) -> Case:
    """All processes of a worker are killed at once, and another worker is there."""
    victims = _Victims(stage, "worker")
    workers: list[WorkerProcess] = []

    def turn(note: Note) -> None:
        if not workers:
            workers.append(stage.worker(concurrency=1, durable_lease_timeout=LEASE))
        execution, _ = victims.next()
        workers.append(stage.worker(concurrency=1, durable_lease_timeout=LEASE))
        killed_at = time.time()
        workers.pop(0).crash()
        note(KILLED_WORKER, victims.went_on(execution) - killed_at - LEASE)

    return Case({KILLED_WORKER: "s"}, turn)


def cases(stage: Stage, other: Stage) -> list[Case]:
    """The suite.

    :param other: a second stage, so that no worker of the one helps in the other.
    """
    return [killed_process(stage), killed_worker(other)]
