"""Durable tasks in the tests of a Django project, run as its developers run them: ``manage.py test`` and pytest-django.

The project's own database is there beside that of its tests, and must be as it was afterwards: empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.docs.pages import ROOT
from tests.support.databases import JournalDatabase

SITE = "tests.acceptance.django_site"
ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}


def run(database: JournalDatabase, journal: str, command: list[str], test: dict[str, str] | None = None) -> str:
    url = sa.make_url(database.url)
    given = {
        "ENGINE": ENGINES[database.kind],
        "NAME": url.database,
        "HOST": url.host or "",
        "PORT": url.port or "",
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "TEST": test or {},
    }
    env = {
        **os.environ,
        "DJANGO_SITE_DATABASE": json.dumps(given),
        "DJANGO_SITE_JOURNAL": journal,
        "DJANGO_SETTINGS_MODULE": f"{SITE}.settings",
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert untouched(database), done.stdout
    return done.stdout


def untouched(database: JournalDatabase) -> bool:
    if database.kind == "sqlite":
        path = Path(str(sa.make_url(database.url).database))
        return not path.exists() or path.stat().st_size == 0
    return sa.inspect(database.engine()).get_table_names() == []


def test_databases(database: JournalDatabase) -> set[str]:
    if database.kind == "sqlite":
        return set()
    query = "SELECT datname FROM pg_database" if database.kind == "postgresql" else "SHOW DATABASES"
    with database.engine().connect() as connection:
        names = set(connection.execute(sa.text(query)).scalars())
    return {name for name in names if str(sa.make_url(database.url).database) in name and name.startswith("test_")}


test_databases.__test__ = False  # type: ignore[attr-defined]


def test_django_s_own_runner(database: JournalDatabase) -> None:
    told = run(database, "django://default", ["-m", f"{SITE}.manage", "test", "--noinput", SITE])
    assert "\nOK" in told
    # No connection of the journal's was left that would have kept it.
    assert test_databases(database) == set()


def test_pytest_django_where_the_journal_has_a_url_of_its_own(database: JournalDatabase, tmp_path: Path) -> None:
    # A worker in a thread needs a file: nobody waits for the lock of a table in memory.
    test = {"NAME": str(tmp_path / "the-tests.sqlite3")} if database.kind == "sqlite" else None
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}"]
    command = ["-m", "pytest", *options, "-o", "django_find_project=false"]
    told = run(database, database.url, [*command, "tests/acceptance/django_site/pytest_tests.py"], test)
    assert "7 passed" in told
    assert test_databases(database) == set()


@pytest.mark.databases("sqlite", "postgresql")
def test_each_process_of_a_parallel_run_has_a_clone(database: JournalDatabase) -> None:
    label = f"{SITE}.shop.tests"
    labels = [f"{label}.{case}.test_an_id_is_used_in_every_test_anew" for case in ("InATransaction", "OnItsOwn")]
    told = run(database, database.url, ["-m", f"{SITE}.manage", "test", "--noinput", "--parallel", "2", *labels])
    assert "\nOK" in told
    assert "Cloning test database" in told
    assert test_databases(database) == set()


@pytest.mark.databases("sqlite")
def test_a_journal_in_no_database_of_the_project_is_in_memory(database: JournalDatabase, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    label = f"{SITE}.shop.tests.Without"
    run(database, f"sqlite:///{elsewhere}", ["-m", f"{SITE}.manage", "test", "--noinput", label])
    assert not elsewhere.exists()
