"""Counts what the library writes into the workers' logs when a body went through steps that were done before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LINE = re.compile(r"replayed (\d+) steps, (\d+) guarded ones skipped, (\d+) called")


@dataclass(frozen=True)
class Replays:
    """Sums over all runs that came to an end. A run that was killed wrote no line, so these are lower bounds."""

    runs: int
    #: Steps that were answered without calling their operation.
    steps: int
    #: The guarded ones among them, and those that were skipped in doubt.
    guarded: int


def read_replays(logs: Path) -> Replays:
    """Read the logs of all workers."""
    texts = [log.read_text(errors="replace") for log in sorted(logs.glob("worker*.log"))]
    found = [match for text in texts for match in LINE.finditer(text)]
    return Replays(len(found), sum(int(match[1]) for match in found), sum(int(match[2]) for match in found))
