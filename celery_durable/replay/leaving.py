"""Exceptions that leave a body before its end. Users never see these; a bare ``except:`` must not swallow them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from celery_durable.store.records import Awaited, Awaiting

__all__ = ["Cancelled", "Held", "Leave", "Park", "Suspend", "Undoing", "Waiting", "together"]


class Leave(BaseException):
    """Base: the body is left here, and its execution continues later."""


class Suspend(Leave):
    """Nothing is held meanwhile; the message is sent again after ``delay`` seconds."""

    def __init__(self, delay: float | None) -> None:
        super().__init__(
            "the durable body is suspended here. This is not an error and must reach the task: do not catch "
            "BaseException around durable steps and waits."
        )
        self._due = None if delay is None else time.monotonic() + delay

    @property
    def delay(self) -> float | None:
        """Seconds from now; None if time alone does not end the wait."""
        return None if self._due is None else max(self._due - time.monotonic(), 0.0)


class Waiting(Suspend):
    """The body waits, in one place or in several branches at once, and continues when any of the waits has ended.

    :param timer: seconds from now until a timer is due; None for never.
    :param deadline: the same for the deadline of a promise.
    :param awaited: promises whose settlement ends the wait.
    :param names: names of what the body waits for.
    """

    def __init__(
        self,
        *,
        timer: float | None = None,
        deadline: float | None = None,
        awaited: Iterable[Awaited] = (),
        names: Iterable[str] = (),
    ) -> None:
        super().__init__(_earliest(timer, deadline))
        self._timer = None if timer is None else time.monotonic() + timer
        #: In order, without duplicates.
        self._awaited = dict.fromkeys(awaited)
        self._names = dict.fromkeys(names)

    @property
    def names(self) -> list[str]:
        """What the body waits for."""
        return list(self._names)

    @property
    def awaiting(self) -> Awaiting | None:
        """The promises whose settlement ends the wait; None if only time does."""
        if not self._awaited:
            return None
        timer = None if self._timer is None else max(int((self._timer - time.monotonic()) * 1000), 0)
        return Awaiting(tuple(self._awaited), timer)

    def join(self, other: Waiting) -> Waiting:
        """Wait for what ``other`` waits for too."""
        self._due = _earliest(self._due, other._due)
        self._timer = _earliest(self._timer, other._timer)
        self._awaited |= other._awaited
        self._names |= other._names
        return self


class Held(Waiting):
    """Another execution runs the operation of this step's ``key=`` right now. Until it has ended, the outcome of this
    step is unknown, even to a body that only shows what there is to undo.
    """


def together(several: Iterable[Waiting | Undoing]) -> Waiting | Undoing:
    """The exception that leaves a whole whose parts were left by these."""
    parts = list(several)
    waits = [one for one in parts if isinstance(one, Waiting)]
    held = [one for one in waits if isinstance(one, Held)]
    if len(waits) < len(parts):
        # A body that is undone need not wait for anything, except for the outcome of a step that is held elsewhere.
        if not held:
            return Undoing()
        waits = list(held)
    joined = Held() if held else Waiting()
    for one in waits:
        joined.join(one)
    return joined


def _earliest(*times: float | None) -> float | None:
    return min((t for t in times if t is not None), default=None)


class Park(Leave):
    """An operator has to decide.

    :param reason: for everybody, also in logs: without arguments, values and messages of errors.
    :param quarantined: no step is in doubt, but continuing automatically would not help.
    :param details: arguments, values and messages, for those who ask for them.
    """

    def __init__(self, reason: str, quarantined: bool = False, details: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.quarantined = quarantined
        self.details = details


class Undoing(Leave):
    """This part of the body has shown what there is to undo; it starts nothing new."""


class Cancelled(Leave):
    """The execution's cancellation was requested, and what it did is undone."""
