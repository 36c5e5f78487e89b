"""When a step is tried again after an exception. Steps in doubt are another matter: see ``on_ambiguous``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate
from celery.utils.time import get_exponential_backoff_interval

from celery_durable.errors import ConfigurationError, DurableError

__all__ = ["Retry"]

#: Not failures of the operation: lost knowledge and broken rules, the end of the task's time, and what tells Celery
#: what to do with the task.
_NEVER = (DurableError, SoftTimeLimitExceeded, TaskPredicate)

#: The number of a step's entries in the journal is a small integer, and a guarded step has two for each try.
_MOST_ATTEMPTS: Final = 10_000


@dataclass(frozen=True)
class Retry:
    """Try a failed step again, inside the running task. Tries and pauses are journaled: a crash resets neither.

    When the last try has failed, its exception goes to the body. Errors of this library, the soft time limit, and
    Celery's own exceptions (``Retry``, ``Ignore``, ``Reject``) never cause another try.

    :raises ConfigurationError: for values out of range.
    """

    #: Tries in all, the first one included; at most 10 000.
    max_attempts: int = 3
    #: Pause before the second try, in seconds; it doubles from try to try.
    backoff: float = 1.0
    #: The longest pause, in seconds.
    max_backoff: float = 60.0
    #: Draw each pause at random between zero and its full length, so that many steps do not retry in step.
    jitter: bool = True
    #: Exceptions that cause another try: a class, or several in a tuple.
    on: tuple[type[Exception], ...] | type[Exception] = (Exception,)
    #: Exceptions among those that do not: a class, or several in a tuple.
    give_up_on: tuple[type[Exception], ...] | type[Exception] = ()

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigurationError(f"Retry(max_attempts={self.max_attempts!r}): at least one try is needed.")
        if self.max_attempts > _MOST_ATTEMPTS:
            raise ConfigurationError(
                f"Retry(max_attempts={self.max_attempts!r}): each try is journaled, at most {_MOST_ATTEMPTS} of one "
                "step. To poll for something, call the step in a loop with sleep() in between, which holds no worker "
                "meanwhile."
            )
        if self.backoff < 0 or self.max_backoff < 0:
            raise ConfigurationError("Retry: backoff= and max_backoff= are seconds, 0 or more.")
        for option in ("on", "give_up_on"):
            value = getattr(self, option)
            if isinstance(value, type):
                value = (value,)
                object.__setattr__(self, option, value)
            if not isinstance(value, tuple) or not all(isinstance(e, type) and issubclass(e, Exception) for e in value):
                raise ConfigurationError(f"Retry: {option}= takes exception classes, not {value!r}.")

    def wants(self, error: Exception, attempt: int) -> bool:
        """Whether ``error`` of try number ``attempt`` (1 for the first) is worth another try."""
        return (
            attempt < self.max_attempts
            and not isinstance(error, _NEVER)
            and isinstance(error, self.on)
            and not isinstance(error, self.give_up_on)
        )

    def pause(self, attempt: int) -> float:
        """Seconds to wait after try number ``attempt``."""
        # Celery's helper counts in whole seconds: scaled to milliseconds, and back.
        pause_ms = get_exponential_backoff_interval(
            factor=max(int(self.backoff * 1000), 0),
            retries=attempt - 1,
            maximum=int(self.max_backoff * 1000),
            full_jitter=self.jitter,
        )
        return float(pause_ms) / 1000.0
