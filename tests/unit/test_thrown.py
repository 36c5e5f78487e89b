"""What was thrown into a transaction is told from what stands behind a database's own errors."""

from __future__ import annotations

import contextlib
import itertools

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import exc

from celery_durable.store.interrupted import thrown_behind


def raised(*errors: Exception) -> Exception:
    """The last of them, each raised from the one before."""
    for before, error in itertools.pairwise(errors):
        with contextlib.suppress(type(error)):
            raise error from before
    return errors[-1]


def test_what_the_driver_says_is_not_thrown_in_when_the_watchdog_speaks_for_it() -> None:
    driver = psycopg.OperationalError("server closed the connection unexpectedly")
    assert thrown_behind(raised(driver, exc.OperationalError("", None, driver)), None) is None
    wrapped = exc.OperationalError("", None, driver)
    assert thrown_behind(raised(driver, wrapped, exc.TimeoutError("the server did not answer")), None) is None


@pytest.mark.parametrize("last", [exc.TimeoutError("the server did not answer"), exc.InvalidRequestError("closed")])
def test_a_limit_is_found_behind_what_it_caused(last: Exception) -> None:
    limit = SoftTimeLimitExceeded()
    driver = psycopg.OperationalError("another command is already in progress")
    found = thrown_behind(raised(limit, driver, exc.OperationalError("", None, driver), last), None)
    assert found is limit
