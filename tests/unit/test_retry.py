"""What a step's retry policy tries again, and what never."""

from __future__ import annotations

import pytest
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.exceptions import Retry as CeleryRetry

from celery_durable import AmbiguousEffect, DurableError, PayloadError, Retry

EAGER = Retry(max_attempts=10)


def test_any_exception_is_worth_another_try_until_tries_run_out() -> None:
    assert [Retry(max_attempts=3).wants(OSError(), attempt) for attempt in (1, 2, 3)] == [True, True, False]


def test_only_the_named_exceptions_are_where_some_are_named() -> None:
    policy = Retry(on=(OSError,), give_up_on=FileNotFoundError)
    assert policy.wants(ConnectionError(), 1)
    assert not policy.wants(ValueError(), 1)
    assert not policy.wants(FileNotFoundError(), 1)


@pytest.mark.parametrize("error", [PayloadError("x"), AmbiguousEffect("x")])
def test_errors_of_the_library_never_are(error: DurableError) -> None:
    assert isinstance(error, Exception)
    assert not EAGER.wants(error, 1)


def test_the_end_of_the_tasks_time_is_not() -> None:
    assert not EAGER.wants(SoftTimeLimitExceeded(), 1)


@pytest.mark.parametrize("control", [CeleryRetry(), Ignore(), Reject()])
def test_what_tells_celery_what_to_do_with_the_task_is_not(control: Exception) -> None:
    assert not EAGER.wants(control, 1)
