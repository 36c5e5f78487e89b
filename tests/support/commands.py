"""Runs ``celery durable``: in this process, for speed, or as people do."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_durable.cli import durable

__all__ = ["Answer", "run", "run_process"]

ROOT = Path(__file__).resolve().parents[2]

_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})? UTC")
_DURATION = re.compile(r" +\d+\.\d (ms|s|min)\b")


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object that it wrote."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        """The objects that it wrote, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def text(self) -> str:
        """The output without what differs from run to run: times and durations."""
        return _DURATION.sub(" TOOK", _TIME.sub("TIME", self.out))


def run(app: Celery, *args: str, typed: str | None = None, fails: int = 0) -> Answer:
    """Run a command in this process.

    :param typed: what the person answers.
    :param fails: the exit code that is expected.
    """
    # Until click 8.2 the two streams were mixed by default.
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner(**apart).invoke(durable, args, obj=context, input=typed, prog_name="durable")
    answer = Answer(result.exit_code, result.stdout, result.stderr)
    expected_exception = result.exception is None or isinstance(result.exception, SystemExit)
    assert expected_exception, (args, answer, result.exc_info)
    assert result.exit_code == fails, (args, answer)
    return answer


def run_process(
    app: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    typed: str | None = None,
    fails: int = 0,
) -> Answer:
    """Run ``celery -A app durable ...`` in a process of its own.

    :param typed: what comes from its standard input.
    """
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", app, "durable", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        input=typed,
        stdin=subprocess.DEVNULL if typed is None else None,
        capture_output=True,
        text=True,
        timeout=120,
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert done.returncode == fails, (args, answer)
    return answer
