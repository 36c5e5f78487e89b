"""Other users of the machine, and readers of logs: what they see of a journal, and where they stand in the way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from celery_durable.errors import ConfigurationError
from celery_durable.runtime import lifeline as lifelines
from celery_durable.store.database import Database
from celery_durable.store.urls import parse_url, shown


def test_a_sqlite_journal_is_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    before = os.umask(0o022)
    try:
        database = Database(f"sqlite:///{path}", timeout=5)
        database.write(lambda connection: None)
    finally:
        os.umask(before)
    files = list(tmp_path.iterdir())
    database.dispose()
    assert path in files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.exists()} == {0o600}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://127.0.0.1:1/x?user=u&password=hunter2",
        "postgresql+psycopg:///x?host=h&sslpassword=hunter2",
        "mysql+pymysql://u@127.0.0.1:1/x?passwd=hunter2",
    ],
)
def test_a_password_is_not_shown_wherever_it_stands(url: str) -> None:
    assert "hunter2" not in shown(make_url(url))
    assert "/x" in shown(make_url(url))


def test_nor_that_of_a_url_that_is_none() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url("postgresql:/x?password=hunter2&user=u")
    assert "hunter2" not in caught.value.message


def test_two_workers_of_one_pid_have_two_sockets() -> None:
    """Pods that share a network have a process 1 each."""
    code = "from celery_durable.runtime.lifeline import address_of; print(repr(address_of(1)))"
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(said) == 2


def test_what_a_stranger_answers_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    address = lifelines.address_of(424242)
    server = lifelines.listen(address)
    try:
        monkeypatch.setattr(lifelines, "peer_is_us", lambda connection: False)
        with pytest.raises(ConnectionRefusedError):
            lifelines.connect(address, 1)
        lifeline = lifelines.Lifeline(address, "owner")
        lifeline.hold()
        assert not lifeline.held
    finally:
        server.close()
