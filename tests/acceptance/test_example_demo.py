"""The example project's demo, from its command line to its verdict, with kills all the while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Among these twelve are large ones, one of which is refused, one out of stock, and some that pay late.
ORDERS, SEED = 12, 15


def demo(directory: Path, *arguments: str) -> tuple[int, str]:
    """Run the demo without any server; exit code and standard output."""
    command = [sys.executable, "-m", "example_project.demo", "--dir", str(directory), "--orders", str(ORDERS)]
    env = {name: value for name, value in os.environ.items() if name not in ("BROKER", "DATABASE", "RESULT_BACKEND")}
    env["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [*command, "--seed", str(SEED), *arguments],
        cwd=directory.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
def test_every_order_comes_to_its_end_whatever_is_killed(tmp_path: Path) -> None:
    code, output = demo(tmp_path / "demo", "--json")
    assert code == 0, output
    result: dict[str, Any] = json.loads(output)
    assert result["ok"]
    assert result["problems"] == []
    assert result["endings"] == {"fulfilled": 10, "refused": 1, "refunded": 1}
    assert result["kills"]
    assert result["requests"]["desk"]["answered"] == 7
