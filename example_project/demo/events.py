"""What the workers' processes say about themselves, in one file that all of them append to.

The killer reads it to know whom it hits, the report to measure how long an interrupted order had to wait.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: Environment variable with the path of the file.
VARIABLE = "SHOP_DEMO_EVENTS"


@dataclass(frozen=True)
class Event:
    """One line of the file."""

    #: Seconds since the epoch; all processes run on one machine.
    at: float
    pid: int
    #: ``child`` (a pool process is ready), ``start`` or ``end`` (of a delivery), ``run`` (of the task's body).
    kind: str
    #: Id of the execution; "" for ``child``.
    execution: str = ""
    #: Id of the order's execution: the same one, or the one for which this one sends a parcel.
    order: str = ""


def write(kind: str, execution: str = "", order: str = "") -> None:
    """Append an event. One ``write`` of a short line to a file opened for appending is not torn by others."""
    line = json.dumps(asdict(Event(time.time(), os.getpid(), kind, execution, order))) + "\n"
    file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class EventLog:
    """Reads the file, and goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        #: What each pool process works on, by process id; "" while it waits.
        self.children: dict[int, str] = {}
        #: To which order's execution each execution belongs.
        self.orders: dict[str, str] = {}
        self._offset = 0

    def refresh(self) -> None:
        """Read what was added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._offset += len(line)
            event = Event(**json.loads(line))
            self.events.append(event)
            if event.order:
                self.orders[event.execution] = event.order
            self.children[event.pid] = "" if event.kind == "end" else event.execution

    def started_again(self, execution: str, after: float) -> float | None:
        """When an execution was first run again after a moment; deliveries that were dropped do not count."""
        runs = (e.at for e in self.events if e.kind == "run" and e.execution == execution)
        return next((at for at in runs if at > after), None)
