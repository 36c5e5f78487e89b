"""However many ask at the same moment, no more connections are opened than there may be."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from celery_durable.store import Database, migrations
from celery_durable.store.drivers import libpq as direct
from celery_durable.store.drivers.postgresql import PostgreSQL
from tests.support.databases import JournalDatabase


@pytest.mark.databases("postgresql")
def test_statements_that_are_said_to_the_driver_itself(
    database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_MOST", 3)
    migrations.upgrade(database.url)
    journal = Database(database.url, timeout=60)
    journal.read(lambda c: None)
    usual = journal._driver
    assert isinstance(usual, PostgreSQL)
    opened: list[Any] = []

    def slowly(connection: Any, record: Any) -> None:
        opened.append(connection)
        threading.Event().wait(0.1)  # in which everybody else looks whether he may

    event.listen(usual._direct._engine, "connect", slowly)
    begin = threading.Barrier(12)

    def ask(number: int) -> None:
        begin.wait()
        for _ in range(5):
            assert not usual.known("nobody", str(number))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(12)))
    # One may have been open before.
    assert len(opened) in (2, 3)
    assert len(usual._direct._idle) == 3
    journal.dispose()
