"""An outside witness: what really happened, written where celery_durable never looks.

A test must not ask the journal whether an effect happened once, for the journal is what is being tested.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """An append-only file that any number of processes write to, and that survives their death.

    A line is one ``write`` to a descriptor opened with ``O_APPEND``: it is whole or absent, also when its
    writer is killed right after it.

    :param path: the file; it need not exist.
    """

    #: Environment variable that hands the path to a worker: ``env=ledger.env`` here, ``Ledger.from_env()`` there.
    ENV = "DURABLE_TEST_LEDGER"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def from_env(cls) -> Ledger:
        """The ledger of the test that started this process."""
        return cls(os.environ[cls.ENV])

    @property
    def env(self) -> dict[str, str]:
        """What a worker process needs for :meth:`from_env`."""
        return {self.ENV: str(self.path)}

    def fire(self, name: str, **fields: Any) -> None:
        """Record that the effect ``name`` happened just now, in this process."""
        entry = {"name": name, "pid": os.getpid(), "at": time.time(), **fields}
        line = json.dumps(entry, default=str).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        assert written == len(line), "the ledger's disk is full"

    def entries(self, name: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What happened so far, oldest first; all of it, or what has this name and these fields."""
        if not self.path.exists():
            return []
        wanted = fields if name is None else {"name": name, **fields}
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [entry for entry in entries if all(entry.get(key) == value for key, value in wanted.items())]

    def count(self, name: str | None = None, **fields: Any) -> int:
        """How often it happened."""
        return len(self.entries(name, **fields))

    def names(self) -> list[str]:
        """The names of what happened, oldest first."""
        return [entry["name"] for entry in self.entries()]
