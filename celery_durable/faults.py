"""Named fault points in the protocol, for crash tests. Inert unless the environment turns one on.

``CELERY_DURABLE_FAULT`` is a comma-separated list of ``point=action[:count[:file]]``: when ``point`` is reached
for the ``count``-th time (1 by default), the process does ``action``:

* ``kill``: SIGKILL to itself; ``stop``: SIGSTOP to itself (somebody else must SIGCONT it),
* ``raise``: a ``RuntimeError``; ``exit``: ``SystemExit``.

With ``file``, an action happens once for all processes together: the one that creates the file does it.
"""

from __future__ import annotations

import os
import signal

__all__ = ["FAULT_VARIABLE", "reached", "reload"]

FAULT_VARIABLE = "CELERY_DURABLE_FAULT"

#: point -> [action, reaches left, file]
_armed: dict[str, list[tuple[str, int, str]]] = {}
_seen: dict[str, int] = {}


def reload() -> None:
    """Read the environment again."""
    _armed.clear()
    _seen.clear()
    for item in filter(None, os.environ.get(FAULT_VARIABLE, "").split(",")):
        point, _, rest = item.partition("=")
        action, count, file = [*rest.split(":", 2), "", ""][:3]
        _armed.setdefault(point, []).append((action, int(count or 1), file))


def reached(point: str) -> None:
    """The protocol is at ``point``."""
    if _armed:
        _act(point)


def _act(point: str) -> None:
    if point not in _armed:
        return
    _seen[point] = _seen.get(point, 0) + 1
    for action, count, file in _armed[point]:
        if _seen[point] != count and not (file and _seen[point] > count):
            continue
        if file:
            try:
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "raise":
            raise RuntimeError(f"fault point {point}")
        elif action == "exit":
            raise SystemExit(f"fault point {point}")


reload()
