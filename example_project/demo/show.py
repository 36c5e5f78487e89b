"""``celery durable show ID --json`` for many ids in one process: starting Celery forty times takes too long.

Reads ids from standard input, prints one JSON object per line.
"""

from __future__ import annotations

import json
import sys

from celery.bin.celery import celery
from click.testing import CliRunner


def show(execution_id: str) -> str:
    """What the command prints for one execution, on one line."""
    command = ["-A", "example_project.app", "durable", "show", execution_id, "--json"]
    result = CliRunner().invoke(celery, command, catch_exceptions=False)
    if result.exit_code:
        sys.exit(f"durable show {execution_id} failed:\n{result.output}")
    found, _ = json.JSONDecoder().raw_decode(result.output[result.output.index("{") :])
    return json.dumps(found)


if __name__ == "__main__":
    for line in sys.stdin.read().splitlines():
        print(show(line))
