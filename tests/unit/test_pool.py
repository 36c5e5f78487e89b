"""The pool of connections: never more than there may be, and none lost for good."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.store import Database
from celery_durable.store.pool import ConnectionPool


def pool(creator: Callable[[], Any], **options: Any) -> ConnectionPool:
    return ConnectionPool(creator, dialect=sa.create_engine("sqlite://").dialect, **options)


def test_threads_that_come_at_the_same_moment_open_no_more_than_there_may_be() -> None:
    """A journal in memory has one connection: with two of them it was two journals."""
    opened: list[sqlite3.Connection] = []
    begin = threading.Barrier(8)

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(":memory:", check_same_thread=False))
        threading.Event().wait(0.05)  # so long does it take, in which everybody else looks whether he may
        return opened[-1]

    few = pool(connect, most=2)

    def use(_: int) -> None:
        begin.wait()
        for _ in range(5):
            few.connect().close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert len(opened) == 2
    assert (few.checkedout(), few.status()) == (0, "2 connections, 2 of them idle, 0 wait")


def test_a_journal_in_memory_is_one_for_all_threads_from_its_first_moment() -> None:
    for _ in range(20):
        database = Database("sqlite://", timeout=10)
        begin = threading.Barrier(4)

        def count(_: int, database: Database = database, begin: threading.Barrier = begin) -> None:
            begin.wait()
            database.write(lambda c: c.exec_driver_sql("CREATE TABLE IF NOT EXISTS seen (n INTEGER)"))
            database.write(lambda c: c.exec_driver_sql("INSERT INTO seen VALUES (1)"))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(count, range(4)))
        assert database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM seen").scalar()) == 4
        database.dispose()


def test_what_cannot_be_opened_takes_no_place_from_others() -> None:
    """Though its error, which is kept, keeps everything that was in hand when it was raised."""
    trouble: list[Exception] = [sqlite3.OperationalError("away")] * 3
    errors: list[BaseException] = []

    def connect() -> sqlite3.Connection:
        if trouble:
            raise trouble.pop()
        return sqlite3.connect(":memory:")

    one = pool(connect, most=1, patience=0.5)
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError) as caught:
            one.connect()
        errors.append(caught.value)
    one.connect().close()
    assert len(errors) == 3


def test_one_whose_user_is_gone_is_replaced() -> None:
    one = pool(lambda: sqlite3.connect(":memory:"), most=1, patience=0.5)
    held = one.connect()
    with pytest.raises(exc.TimeoutError, match="none of 1 connections was free"):
        one.connect()
    del held
    gc.collect()
    one.connect().close()


def test_more_than_are_kept_are_closed_and_may_be_opened_again() -> None:
    few = pool(lambda: sqlite3.connect(":memory:"), kept=1, most=3, patience=0.5)
    for _ in range(3):
        held = [few.connect() for _ in range(3)]
        for connection in held:
            connection.close()
        assert few.status() == "1 connections, 1 of them idle, 0 wait"
    few.dispose()
    assert few.status() == "0 connections, 0 of them idle, 0 wait"
    few.connect().close()
