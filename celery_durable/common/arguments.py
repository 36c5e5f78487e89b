"""Checks arguments of users: durations and moments, in milliseconds; names; numbers."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any, Final

from celery_durable.errors import ConfigurationError

__all__ = ["Duration", "check_count", "check_name", "milliseconds", "moment"]

Duration = float | dt.timedelta

#: Names longer than this do not fit the journal's column on every database.
_LONGEST_NAME: Final = 200
#: A hundred years: more is a mistake, such as milliseconds for seconds.
_LONGEST_DAYS: Final = 36_525
_LONGEST: Final = _LONGEST_DAYS * 86_400


def milliseconds(value: Any, what: str, *, least: int = 0) -> int:
    """A duration in whole milliseconds, rounded up.

    :param value: seconds, or a timedelta.
    :param what: names it in errors, such as ``sleep()``.
    :raises ConfigurationError: for what is no duration, is negative, or longer than a hundred years.
    """
    if isinstance(value, dt.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    else:
        raise ConfigurationError(f"{what} takes seconds or a timedelta, not {value!r}.")
    if math.isnan(seconds) or seconds > _LONGEST:
        raise ConfigurationError(
            f"{what} takes seconds or a timedelta of at most a hundred years ({_LONGEST_DAYS} days), not {value!r}."
        )
    if seconds < 0:
        raise ConfigurationError(
            f"{what} cannot be negative, as {value!r} is. For a moment that may have passed, use sleep_until() or "
            "timer(until=...)."
        )
    found = math.ceil(round(seconds * 1000, 3))
    if found < least:
        raise ConfigurationError(f"{what} must be longer than 0, and {value!r} is not.")
    return found


def seconds(value: Any, what: str) -> float:
    """How long somebody waits at most, in seconds; less than 0 is 0.

    :raises ConfigurationError: for what is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigurationError(f"{what} takes seconds, or None for no limit, not {value!r}.")
    return float(value)


def moment(value: Any, what: str) -> int:
    """A moment in milliseconds since the epoch, UTC, rounded up; it may have passed.

    :raises ConfigurationError: for what is no aware datetime, or more than a hundred years away.
    """
    if not isinstance(value, dt.datetime):
        raise ConfigurationError(f"{what} takes a datetime, not {value!r}.")
    if value.utcoffset() is None:
        raise ConfigurationError(
            f"{what} takes an aware datetime, and {value!r} has no time zone: nobody knows which moment it means. For "
            "UTC: datetime(..., tzinfo=timezone.utc)."
        )
    since = value - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    if since.days > 2 * _LONGEST_DAYS:
        raise ConfigurationError(f"{what} takes a datetime within the next hundred years, not {value!r}.")
    return since // dt.timedelta(milliseconds=1) + (1 if since % dt.timedelta(milliseconds=1) else 0)


def check_count(number: object, what: str, least: int) -> None:
    """
    :param what: how an error begins, such as ``gather(concurrency=``.
    :raises ConfigurationError: when it is not a whole number of at least that.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ConfigurationError(f"{what}{number!r}): it is a whole number, {least} or more.")


def check_name(name: Any, what: str) -> None:
    """Refuse what the journal cannot take as a name.

    :raises ConfigurationError: says ``what`` the name should be.
    """
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not _is_storable(name):
        raise ConfigurationError(f"{what} is a text of 1 to {_LONGEST_NAME} characters, not {name!r}.")


def _is_storable(text: str) -> bool:
    """PostgreSQL stores no NUL, and no database half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
