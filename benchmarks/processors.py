"""Whose processor time a task takes: the kernel's own account of each process, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

from tests.support.worker import WorkerProcess

from .harness import Note

__all__ = ["IDLE", "PARTS", "REMARKS", "account", "share"]

#: Part of a deployment → the names of its programs.
_SERVERS = {
    "database server": {"postgres", "mariadbd", "mysqld"},
    "broker": {"redis-server", "beam.smp"},
}
PARTS = ("worker's main process", "pool processes", *_SERVERS)
IDLE = "processors idle"

REMARKS = (
    "Processor time for each task, user and system, read from the kernel (it counts in hundredths of a second).",
    "Servers: all processes of that name on this machine. Pool processes: with the worker's recovery service.",
    "Idle: of all processors, also while they wait for a disk.",
)


def share(kind: str, part: str) -> str:
    """Name of the figure: what one task takes of this part's time."""
    return f"{kind}, {part}"


@contextmanager
def account(note: Note, kind: str, tasks: int, workers: Sequence[WorkerProcess]) -> Iterator[None]:
    """Note what the block took of each part's processor time, for each of its tasks.

    What a process took that ends within the block is not counted.
    """
    parts = {
        PARTS[0]: [psutil.Process(worker.pid) for worker in workers],
        PARTS[1]: [psutil.Process(pid) for worker in workers for pid in worker.children()],
        **{
            part: [p for p in psutil.process_iter(["name"]) if p.info["name"] in names]
            for part, names in _SERVERS.items()
        },
    }
    before = {part: _taken(processes) for part, processes in parts.items()}
    idle, total = _machine()
    yield
    for part, processes in parts.items():
        after = _taken(processes)
        note(share(kind, part), sum(after[pid] - before[part].get(pid, 0.0) for pid in after) / tasks)
    idle_then, total_then = _machine()
    note(share(kind, IDLE), (idle_then - idle) / (total_then - total))


def _machine() -> tuple[float, float]:
    """Seconds so far of all processors: idle, and altogether."""
    times = psutil.cpu_times()
    # Linux counts a guest's time in the user's too.
    guests: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return times.idle + getattr(times, "iowait", 0.0), sum(times) - guests


def _taken(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """Process id → seconds so far, of those that still run."""
    found = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = times.user + times.system
    return found
