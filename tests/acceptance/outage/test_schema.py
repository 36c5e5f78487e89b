"""A worker meets tables that are missing, or those of another version: a deploy that went in the wrong order."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable.store import migrations

from .arena import Arena

pytestmark = [pytest.mark.databases("postgresql"), pytest.mark.brokers("redis")]

POSTPONED = "cannot continue without its journal; its message is delivered again in about"


def test_messages_wait_for_tables_that_are_missing(arena: Arena) -> None:
    migrations.downgrade(arena.database.engine(), "base")
    worker = arena.start(concurrency=2)
    names = arena.send_chains(2, 2)
    arena.await_said(worker, POSTPONED, 2)
    assert (
        f": [CD002] the journal's tables are missing in {arena.database.url}. Create them with: celery -A <your app> "
        "durable upgrade\n"
    ) in worker.log()
    arena.await_said(worker, "recovery failed, and is tried again: [CD002]")
    migrations.upgrade(arena.database.url)
    arena.check_chains(names, 2)


def test_messages_wait_where_a_newer_version_has_upgraded_the_tables(arena: Arena) -> None:
    def revise(revision: str) -> None:
        with arena.database.engine().begin() as connection:
            connection.execute(sa.text("UPDATE durable_version SET version_num = :revision"), {"revision": revision})

    revise("0099")
    worker = arena.start()
    names = arena.send_chains(1, 2)
    arena.await_said(worker, POSTPONED)
    assert (
        f": [CD002] the journal's tables in {arena.database.url} have revision '0099', which this version of "
        f"celery_durable does not know (it needs '{migrations.head()}'). A newer version has upgraded them: upgrade "
        "celery_durable here too.\n"
    ) in worker.log()
    revise(migrations.head())
    arena.check_chains(names, 2)
