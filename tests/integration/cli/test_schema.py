"""``durable upgrade`` and ``durable downgrade``, on every database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.engine import make_url

from celery_durable.runtime import Runtime
from celery_durable.store.migrations import head
from tests.support.commands import run
from tests.support.databases import JournalDatabase

from .cli_app import build


@pytest.fixture
def app(database: JournalDatabase) -> Iterator[Celery]:
    app = build(database.conf)
    yield app
    Runtime.of(app).end()


def tables(database: JournalDatabase) -> set[str]:
    found = sa.inspect(database.engine()).get_table_names()
    return {name for name in found if name.startswith("durable_")}


def test_the_tables_are_made_and_removed(app: Celery, database: JournalDatabase):
    where = make_url(database.url).render_as_string()
    assert run(app, "upgrade").out == f"The journal's tables in {where}: no tables → {head()}.\n"
    assert {"durable_execution", "durable_journal", "durable_version"} <= tables(database)
    assert run(app, "upgrade").out == f"The journal's tables in {where} are at revision {head()} already.\n"
    assert run(app, "upgrade", "--json").json == {"database": where, "from": head(), "to": head()}

    app.tasks["nothing"].apply(task_id="n1")
    app.tasks["order"].apply((1,), task_id="o1")
    question = (
        f"{where} holds 2 executions, 1 of them unfinished. Going back to revision base may delete data. Continue? "
        "[y/N]:"
    )
    refused = run(app, "downgrade", "base", typed="n\n", fails=1)
    assert refused.err.startswith(question)
    assert len(run(app, "list", "--json").rows) == 2

    gone = run(app, "downgrade", "base", typed="y\n")
    # (Before click 8.2 the tester's answer is shown here too.)
    assert gone.out.splitlines()[-1] == f"The journal's tables in {where}: {head()} → no tables."
    assert tables(database) <= {"durable_version"}
    assert run(app, "downgrade", "base", "--yes", "--json").json == {"database": where, "from": None, "to": None}
    run(app, "upgrade")
    assert {"durable_execution", "durable_journal"} <= tables(database)


def test_the_statements_are_only_printed(app: Celery, database: JournalDatabase):
    up = run(app, "upgrade", "--sql").out
    assert "CREATE TABLE durable_execution" in up
    assert f"UPDATE durable_version SET version_num='{head()}'" in up
    assert tables(database) == set()

    run(app, "upgrade")
    down = run(app, "downgrade", "base", "--sql").out
    assert "DROP TABLE durable_execution" in down
    assert "durable_execution" in tables(database)
    assert run(app, "downgrade", f"{head()}:base", "--sql").out == down


@pytest.mark.databases("sqlite")
def test_a_revision_that_does_not_exist(app: Celery, database: JournalDatabase):
    known = f"This version knows the revisions up to {head()}."
    for command in (["upgrade", "--revision", "9999"], ["downgrade", "9999", "--yes"]):
        answer = run(app, *command, fails=1)
        assert answer.err == f"Error: Can't locate revision identified by '9999'. {known}\n"
    assert run(app, "upgrade", "--revision", "9999", "--json", fails=1).out == ""
