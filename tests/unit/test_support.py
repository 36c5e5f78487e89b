"""The tools of the tests, tested themselves."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery

from tests.support.backends import Missing, Registry, Usage, address, merge, missing, selected, summary
from tests.support.conf import ENV, conf_env, configure
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually


def test_eventually_returns_what_it_waited_for():
    values = iter([None, 0, "", "there"])
    assert eventually(lambda: next(values), interval=0) == "there"


def test_eventually_fails_with_the_message_and_the_last_value():
    with pytest.raises(AssertionError, match=r"no steps yet \(waited 0 s; last value: \[\]\)"):
        eventually(list, 0, "no steps yet")


def test_eventually_takes_an_ignored_error_for_not_yet_and_shows_the_last_one():
    def look() -> bool:
        raise sqlite3.OperationalError("no such table")

    with pytest.raises(AssertionError, match="no such table"):
        eventually(look, 0, ignore=(sqlite3.OperationalError,))
    with pytest.raises(sqlite3.OperationalError):
        eventually(look, 0)


def test_a_ledger_counts_what_was_fired(ledger: Ledger):
    assert ledger.count("charge") == 0
    ledger.fire("charge", order=1)
    ledger.fire("charge", order=2)
    ledger.fire("mail", order=1)
    assert ledger.count("charge") == 2
    assert ledger.count("charge", order=2) == 1
    assert ledger.count(order=1) == 2
    assert ledger.names() == ["charge", "charge", "mail"]
    assert ledger.entries("mail")[0]["pid"] == os.getpid()


def test_a_ledger_keeps_the_lines_of_many_writers_apart(ledger: Ledger):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: ledger.fire("x" * 500, number=number), range(400)))
    assert sorted(entry["number"] for entry in ledger.entries()) == list(range(400))


def test_settings_reach_an_application_through_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name, value in conf_env({"task_default_queue": "a", "durable_x": 1}, task_default_queue="b").items():
        monkeypatch.setenv(name, value)
    app = configure(Celery("under-test", set_as_current=False))
    assert app.conf.task_default_queue == "b"
    assert app.conf.durable_x == 1
    monkeypatch.delenv(ENV)
    configure(Celery("under-test", set_as_current=False))


def test_selection_by_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DURABLE_TEST_DATABASES", raising=False)
    assert selected("DURABLE_TEST_DATABASES", ["a", "b"]) == ("a", "b")
    monkeypatch.setenv("DURABLE_TEST_DATABASES", " b ,")
    assert selected("DURABLE_TEST_DATABASES", ["a", "b"]) == ("b",)
    monkeypatch.setenv("DURABLE_TEST_DATABASES", "c")
    with pytest.raises(ValueError, match="unknown c; known are a, b"):
        selected("DURABLE_TEST_DATABASES", ["a", "b"])


def test_a_backend_is_looked_for_once_and_every_test_is_counted():
    looks = []

    def find():
        looks.append(1)
        raise Missing("nobody at home")

    registry: Registry[object] = Registry({"mysql": find})
    for _ in range(2):
        with pytest.raises(Missing):
            registry.use("mysql")
    assert len(looks) == 1
    assert registry.usage["mysql"] == Usage(where="nobody at home", skipped=2)


def test_an_address_of_none_means_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DURABLE_TEST_REDIS_URL", "none")
    with pytest.raises(Missing, match="DURABLE_TEST_REDIS_URL says none"):
        address("redis")


def test_the_summary_adds_up_processes_and_tells_what_is_missing():
    usage = {"postgresql": Usage("15.2", "127.0.0.1:5432 (service)", tests=1)}
    merge(usage, {"postgresql": {"tests": 2}, "rabbitmq": {"where": "nobody at home", "skipped": 1}})
    assert usage["postgresql"].tests == 3
    assert missing(usage) == ["rabbitmq"]
    header, postgresql, rabbitmq = summary(usage)
    assert "Celery" in header
    assert "SQLAlchemy" in header
    assert postgresql.split() == ["postgresql", "15.2", "127.0.0.1:5432", "(service)", "3", "tests"]
    assert "MISSING: nobody at home - 1 test skipped" in rabbitmq


@pytest.mark.databases("sqlite")
def test_a_sqlite_database_is_a_file_of_the_test(database: JournalDatabase, database_url: str, tmp_path: Path):
    assert database_url == database.conf["durable_database_url"] == f"sqlite:///{tmp_path}/journal.db"
    with database.engine().begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert (tmp_path / "journal.db").exists()
