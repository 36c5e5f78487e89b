"""What a body can wait for: promises, which somebody outside settles, and timers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

from typing_extensions import Self, TypeVar

from celery_durable.store.records import NewPromise

from .tokens import token_hash

__all__ = ["Promise", "Selected", "Timer"]

T = TypeVar("T", covariant=True, default=Any)


class Promise(Generic[T]):
    """A value that somebody outside the task provides: a decision, or the end of a job that runs elsewhere.

    Made by :meth:`DurableContext.promise`. Give :attr:`id` and :attr:`token` to whoever will settle it by calling
    :func:`celery_durable.resolve` or :func:`celery_durable.reject`. The body calls ``wait()`` or ``select()``.

    ``Promise[Decision]`` tells type checkers what it is resolved with: ``approval: Promise[Decision] = ...``. Nothing
    checks that when it runs: ``Promise[Decision]`` is ``Promise``.
    """

    __slots__ = ("_again", "_heartbeat_ms", "_id", "_lane", "_maker", "_name", "_row_id", "_timeout_ms", "_token")

    def __init__(
        self,
        name: str,
        promise_id: str,
        again: Callable[[], str],
        timeout_ms: int | None = None,
        heartbeat_ms: int | None = None,
        *,
        lane: str = "",
        row_id: str | None = None,
    ) -> None:
        #: What distinguishes it from others of its name, in each execution of this body.
        self._lane = lane
        #: Id of the execution whose body made it; that one can wait for it.
        self._maker = ""
        self._name = name
        self._id = promise_id
        #: Of what this execution waits for: a rerun has rows of its own for the promises that it shares.
        self._row_id = row_id or promise_id
        self._again = again
        self._timeout_ms = timeout_ms
        self._heartbeat_ms = heartbeat_ms
        self._token: str | None = None

    def __class_getitem__(cls, what: Any) -> type[Self]:
        return cls

    @property
    def name(self) -> str:
        """The name that the body gave it."""
        return self._name

    @property
    def id(self) -> str:
        """Identifies it: 32 hex digits, the same on every replay. Not a secret."""
        return self._id

    @property
    def token(self) -> str:
        """A secret: whoever has it can settle the promise. 32 bytes as URL-safe text, the same on every replay.

        :raises ConfigurationError: when the secret that it was derived from is no longer in ``durable_secret``.
        """
        if self._token is None:
            self._token = self._again()
        return self._token

    def _row(self) -> NewPromise:
        """What the store keeps of it."""
        shared = None if self._row_id == self._id else self._id
        return NewPromise(
            self._row_id, self._name, token_hash(self.token), self._timeout_ms, self._heartbeat_ms, shared
        )

    def __repr__(self) -> str:
        return f"<promise {self._name!r} {self._id}>"


class Timer:
    """A timer, made by :meth:`DurableContext.timer`. It runs from then on."""

    __slots__ = ("_delay_ms", "_due", "_maker", "_place", "_since")

    def __init__(self, *, due: int | None = None, delay_ms: int = 0) -> None:
        #: By the database's clock; None until that was read.
        self._due = due
        self._delay_ms = delay_ms
        self._since = time.monotonic()
        #: Where it was set in the body.
        self._place = ""
        #: Id of the execution whose body set it.
        self._maker = ""

    def _due_at(self, now: int) -> int:
        """When it is due, in ms since the epoch by the database's clock.

        :param now: what that clock says.
        """
        if self._due is None:
            self._due = now + self._delay_ms - int((time.monotonic() - self._since) * 1000)
        return self._due

    def _remaining(self, clock: Callable[[], int]) -> int:
        """Milliseconds until it is due; 0 or less where it is.

        :param clock: the database's; not asked where this process has seen the timer start.
        """
        if self._due is None:
            return self._delay_ms - int((time.monotonic() - self._since) * 1000)
        return self._due - clock()

    def __repr__(self) -> str:
        return f"<timer of position {self._place}>"


class Selected(NamedTuple):
    """The source that came first, as ``select()`` returns it."""

    #: Its keyword in the call.
    key: str
    #: The promise's value; None for a timer.
    value: Any
