"""Gates by which a test holds back the bodies of its workers, or tells their processes something."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["GATES", "await_gate", "gate"]

#: Environment variable that names the folder.
GATES = "DURABLE_TEST_GATES"


def gate(name: str) -> Path:
    """The file whose existence means that the gate is open."""
    return Path(os.environ[GATES]) / name


def await_gate(name: str) -> None:
    """Return when a gate is open."""
    while not gate(name).exists():
        time.sleep(0.02)
