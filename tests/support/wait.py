"""Waiting for something to become true, without a guess at how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(
    predicate: Callable[[], T],
    timeout: float = 30.0,
    message: str = "it never became true",
    *,
    interval: float = 0.02,
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """Poll until ``predicate()`` is true, and return what it gave.

    The timeout is no measurement: it only ends a test that would otherwise hang, so make it generous.

    :param timeout: in seconds.
    :param message: what was hoped for; the failure shows it with the last value seen.
    :param interval: pause between two looks, in seconds.
    :param ignore: exceptions that mean "not yet" (a table that does not exist, a server that starts).
    """
    deadline = time.monotonic() + timeout
    while True:
        error: Exception | None = None
        value: T | None = None
        try:
            value = predicate()
        except ignore as caught:
            error = caught
        if error is None and value:
            return value
        if time.monotonic() >= deadline:
            seen = f"last error: {error!r}" if error is not None else f"last value: {value!r}"
            raise AssertionError(f"{message} (waited {timeout:g} s; {seen})") from error
        time.sleep(interval)
