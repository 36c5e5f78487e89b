"""What a signal throws into a transaction comes out as what it is; what a database says does not count as that."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import exc

from celery_durable import JournalUnavailable
from celery_durable.store import Database
from celery_durable.store.interrupted import thrown_behind
from celery_durable.store.migrations import upgrade
from tests.support.databases import JournalDatabase

SLEEP = {"postgresql": "SELECT pg_sleep(60)", "mysql": "SELECT SLEEP(60)"}


def chain(*errors: BaseException) -> BaseException:
    """Each was met while the next one was being handled."""
    for error, behind in itertools.pairwise(errors):
        error.__context__ = behind
    return errors[0]


def wrapped(error: Exception) -> exc.OperationalError:
    return exc.OperationalError("SELECT 1", None, error)


class DriverError(Exception):
    """As psycopg's."""


DriverError.__module__ = "psycopg.errors"


def test_what_stands_behind_an_error_of_the_clean_up_is_found() -> None:
    limit = SoftTimeLimitExceeded()
    assert thrown_behind(chain(wrapped(DriverError()), DriverError(), limit), None) is limit  # type: ignore[arg-type]
    assert thrown_behind(exc.StatementError("", "SELECT 1", None, limit), None) is limit


@pytest.mark.parametrize("behind", [DriverError(), OSError("reset"), TimeoutError(), ConnectionResetError()])
def test_what_makes_an_error_of_a_database_is_its_own(behind: Exception) -> None:
    assert thrown_behind(chain(exc.TimeoutError("the server did not answer"), behind), None) is None  # type: ignore[arg-type]
    assert thrown_behind(chain(wrapped(DriverError()), DriverError(), behind), None) is None  # type: ignore[arg-type]


def test_what_the_caller_was_handling_has_nothing_to_do_with_it() -> None:
    before = SoftTimeLimitExceeded()
    assert thrown_behind(chain(wrapped(DriverError()), DriverError(), before), before) is None  # type: ignore[arg-type]


@pytest.fixture
def alarm() -> Iterator[None]:
    def limit(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_a_limit_in_the_middle_of_a_statement_comes_out_and_its_connection_is_not_used_again(
    database: JournalDatabase,
) -> None:
    if database.kind == "sqlite":
        # It has no server that could be waited for; the limit strikes between two of its statements.
        database_ = Database(database.url)
        with pytest.raises(SoftTimeLimitExceeded):
            database_.write(lambda connection: signal.raise_signal(signal.SIGALRM))
        assert database_.write(lambda connection: connection.scalar(sa.text("SELECT 1"))) == 1
        database_.dispose()
        return
    ours = Database(database.url, timeout=60)
    upgrade(ours.engine)
    seen: list[int] = []
    who = "SELECT pg_backend_pid()" if database.kind == "postgresql" else "SELECT CONNECTION_ID()"

    def work(connection: sa.Connection) -> None:
        seen.append(connection.scalar(sa.text(who)))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        connection.execute(sa.text(SLEEP[database.kind]))

    for say in (ours.write, ours.read):
        with pytest.raises(SoftTimeLimitExceeded):
            say(work)
        assert ours.write(lambda connection: connection.scalar(sa.text(who))) not in seen
    ours.dispose()


def test_an_outage_stays_one(database: JournalDatabase) -> None:
    url = sa.make_url(database.url)
    away = url.set(database="/no/such/folder/j.db") if database.kind == "sqlite" else url.set(port=1, host="127.0.0.1")
    with pytest.raises(JournalUnavailable):
        Database(away.render_as_string(hide_password=False), timeout=0.2).read(lambda connection: None)
