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

    #: Seconds that a command may take.
    PATIENCE = 60

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env

    def _run(self, module: str, *arguments: str, text: str = "") -> list[dict[str, Any]]:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(
            command, input=text, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=self.PATIENCE
        )
        if done.returncode:
            raise JournalError(f"`{' '.join(command[1:])}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def executions(self) -> dict[str, Execution]:
        """All executions, by id."""
        found = self._run("celery", "-A", "example_project.app", "durable", "list", "--json", "--limit", "100000")
        return {row["id"]: Execution(row["id"], row["state"], row["attempts"], row["steps"]) for row in found}

    def steps(self, ids: Iterable[str]) -> dict[str, list[StepRow]]:
        """The steps of these executions."""
        found = self._run("example_project.demo.show", text="\n".join(ids))
        return {row["id"]: [self._step(step) for step in row["steps"]] for row in found}

    @staticmethod
    def _step(row: dict[str, Any]) -> StepRow:
        return StepRow(str(row["position"]), row["name"], str(row["outcome"]).lower(), row["attempts"])
