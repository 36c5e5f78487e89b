"""What a resume keeps of the steps that it has replayed, counted at two lengths of one body."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import replayed


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("idempotent", 8),
        ("named by a key", 8),
        # Calls are told from their equals by a number, so it must be known which there were: 64 bits of each, in a
        # table of which at least a third is used.
        ("at least once", 24 + 8),
        ("guarded", 24 + 8),
    ],
)
def test_a_replayed_step_leaves_next_to_nothing_behind(kind: str, most: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", replayed.__name__, kind, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150).stdout
    assert int(printed.splitlines()[-1]) < most * (replayed.LONG - replayed.SHORT)
