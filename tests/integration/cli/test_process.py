"""``celery -A proj durable ...`` as people run it: a process, a pipe or a terminal, signals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from celery import Celery

from celery_durable.runtime import Runtime
from tests.support.brokers import MessageBroker
from tests.support.commands import ROOT, run_process
from tests.support.conf import conf_env
from tests.support.databases import JournalDatabase
from tests.support.wait import eventually

from .cli_app import build

APP = "tests.integration.cli.cli_app"
LONG_ID = "invoice-2026-11-23-of-the-customer-with-a-very-long-name-0123456789"

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def app(database: JournalDatabase) -> Iterator[Celery]:
    app = build(database.conf)
    app.tasks["order"].apply((1,), task_id=LONG_ID)
    yield app
    Runtime.of(app).end()


def terminal(*args: str, env: Mapping[str, str]) -> str:
    """Run a command in a terminal of sixty columns; everything that it wrote there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", APP, "durable", *args],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", "COLUMNS": "60", **env},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    assert process.wait(60) == 0, written
    return written.decode()


def test_a_pipe_gets_whole_lines_and_a_terminal_gets_colours(app: Celery, database: JournalDatabase):
    env = conf_env(database.conf)
    [_, row] = run_process(APP, "list", env={**env, "FORCE_COLOR": ""}).out.splitlines()
    assert row.split()[:3] == [LONG_ID, "order", "ambiguous"]
    assert "\x1b" not in row

    coloured = terminal("list", env=env)
    assert "\x1b[1;33mambiguous\x1b[0m" in coloured
    colourless = terminal("list", env={**env, "NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", colourless)
    # Too narrow for the id, which goes on in the next line; everything else stays whole.
    first, second = re.sub(r"\x1b\[[0-9;]*m", "", colourless).split("\r\n")[3:5]
    assert re.fullmatch(r" (\S+) +order +ambiguous +0 +1 +\d+ s ago", first)
    assert first.split()[0] + second.strip() == LONG_ID

    table = re.sub(r"\x1b\[[0-9;]*m", "", terminal("show", LONG_ID, env=env))
    assert re.search(r"\r\n 1 +charge +guarded +in doubt +1 +\d+\.\d ms +[0-9a-f]{12}…\r\n", table)
    shown = run_process(APP, "show", LONG_ID, env=env).out
    assert f"  celery -A {APP} durable resolve {LONG_ID} 1 --run " in shown


def test_the_command_needs_an_application(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "celery", "durable", "list"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Error: name your application: celery -A proj durable ...\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.brokers("filesystem")
def test_the_service_sends_what_was_lost_and_ends_when_it_is_asked_to(
    broker: MessageBroker, database: JournalDatabase, tmp_path: Path
):
    """No worker lives: the broker loses a message, and the service alone puts it there again."""
    settings = {"durable_outbox": True, "durable_lease_timeout": 1, "durable_recovery_interval": 0.2}
    app = build(broker.conf, database.conf, settings)
    app.tasks["nothing"].delay(1)
    broker.flush()
    messages = Path(broker.transport_options["data_folder_in"])
    assert list(messages.iterdir()) == []

    log = tmp_path / "service.log"
    with log.open("wb") as output:
        service = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", APP, "durable", "service"],
            cwd=ROOT,
            env={**os.environ, **conf_env(broker.conf, database.conf, settings)},
            stdout=output,
            stderr=output,
        )
    try:
        try:
            eventually(lambda: list(messages.iterdir()), 120, "nothing was sent")
        except AssertionError as error:
            raise AssertionError(f"{error}; the service says:\n{log.read_text()}") from error
        assert f"recovery service of namespace 'clitest' is ready (pid {service.pid})" in log.read_text()
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait()
    assert log.read_text().splitlines()[-1].endswith("recovery service stops")
    assert "Traceback" not in log.read_text()
    app.close()
    Runtime.of(app).end()
