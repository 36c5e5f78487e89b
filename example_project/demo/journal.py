"""Reads the journal the way an operator would: with ``celery durable list`` and ``show``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..config import ROOT

#: States in which nothing more happens by itself.
FINAL = {"completed", "failed", "cancelled", "ambiguous", "quarantined"}


class JournalError(RuntimeError):
    """The command line of the library did not answer."""


@dataclass(frozen=True)
class Execution:
    """One line of ``durable list``."""

    id: str
    state: str
    attempts: int
    steps: int

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.state in FINAL


@dataclass(frozen=True)
class StepRow:
    """One step of ``durable show``."""

    position: str
    name: str
    outcome: str
    attempts: int


class Journal:
    """The journal of the demo's own namespace."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env

    def _durable(self, *arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "celery", "-A", "example_project.app", "durable", *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise JournalError(f"`{' '.join(command[1:])}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def executions(self) -> dict[str, Execution]:
        """All executions, by id."""
        found = self._durable("list", "--limit", "100000")
        return {row["id"]: Execution(row["id"], row["state"], row["attempts"], row["steps"]) for row in found}

    def steps(self, ids: Iterable[str]) -> dict[str, list[StepRow]]:
        """The steps of these executions."""
        return {id_: [self._step(row) for row in self._durable("show", id_)[0]["steps"]] for id_ in ids}

    @staticmethod
    def _step(row: dict[str, Any]) -> StepRow:
        return StepRow(str(row["position"]), row["name"], str(row["outcome"]).lower(), row["attempts"])
