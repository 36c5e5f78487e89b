"""Named fault points in the protocol, for crash tests. Inert unless the environment turns one on.

``CELERY_DURABLE_FAULT`` is a comma-separated list of ``point=action[:count[:file]]``: when ``point`` is reached
for the ``count``-th time (1 by default), the process does ``action``:

* ``kill``: SIGKILL to itself; ``stop``: SIGSTOP to itself (somebody else must SIGCONT it),
* ``raise``: a ``RuntimeError``; ``exit``: ``SystemExit``.

With ``file``, an action happens once for all processes together: the one that creates the file does it.

``CELERY_DURABLE_FAULT_DIRECTORY`` names a folder by which faults are turned on while processes run, each for one
execution: a file ``point@execution``, or ``point@execution@step``, whose lines are ``action [count]``. A line is
removed by the process that does its action, and the file with the last one: what is still there was never reached.
"""

from __future__ import annotations

import os
import signal

__all__ = ["DIRECTORY_VARIABLE", "FAULT_VARIABLE", "reached", "reload"]

FAULT_VARIABLE = "CELERY_DURABLE_FAULT"
DIRECTORY_VARIABLE = "CELERY_DURABLE_FAULT_DIRECTORY"

#: point -> [action, reaches left, file]. Empty: nothing is looked at.
_armed: dict[str, list[tuple[str, int, str]]] = {}
_seen: dict[str, int] = {}
_directory = ""


def reload() -> None:
    """Read the environment again."""
    global _directory
    _armed.clear()
    _seen.clear()
    for item in filter(None, os.environ.get(FAULT_VARIABLE, "").split(",")):
        point, _, rest = item.partition("=")
        action, count, file = [*rest.split(":", 2), "", ""][:3]
        _armed.setdefault(point, []).append((action, int(count or 1), file))
    _directory = os.environ.get(DIRECTORY_VARIABLE, "")
    if _directory:
        _armed.setdefault("", [])


def reached(point: str, execution: str = "", step: str = "") -> None:
    """The protocol is at ``point``, for this execution and step where there is one."""
    if _armed:
        _act(point, execution, step)


def _act(point: str, execution: str, step: str) -> None:
    if _directory and execution:
        for file in (f"{point}@{execution}", f"{point}@{execution}@{step}"):
            _act_by_file(point, os.path.join(_directory, file))
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
        _do(action, point)


def _act_by_file(point: str, path: str) -> None:
    try:
        with open(path, encoding="ascii") as file:
            first, *left = file.read().splitlines()
    except FileNotFoundError:
        return
    action, _, count = first.partition(" ")
    due = int(count or 1) <= 1
    if not due:
        left.insert(0, f"{action} {int(count) - 1}")
    if left:
        with open(path, "w", encoding="ascii") as file:
            file.write("\n".join(left))
    else:
        os.unlink(path)
    if due:
        _do(action, point)


def _do(action: str, point: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        # To this thread: were another one to take it, this one would run on for a moment.
        signal.raise_signal(signal.SIGSTOP)
    elif action == "raise":
        raise RuntimeError(f"fault point {point}")
    elif action == "exit":
        raise SystemExit(f"fault point {point}")


reload()
