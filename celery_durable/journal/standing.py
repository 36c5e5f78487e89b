"""Whether the journal accepts what an execution writes, and whether its body may continue.

There are three states, each with one meaning and one rule:

* **refused**: the journal accepts nothing more from this owner. The first reason stays, because later ones are its
  consequences; only a final reason replaces an outage, and a lost lease replaces everything, because then this owner
  never commits again. The writer sets it, or the thread that renews leases.
* **barred**: every further request of the body gets this error. The first reason stays: a body that catches it once
  gets the same again. A refusal bars the body at its next request. So does what the journal holds: a step in doubt,
  steps of a different body, or a value that cannot be read.
* **degraded**: the journal could not be reached, and the application has chosen to continue without it. Nothing is
  appended any more, so an outage refuses nothing, and nothing can wait for an operator. It stays so until the run ends.

The code that *ends* the execution may still write when the body may not: the bar is lifted (:meth:`Standing.lift`) for
compensations and for parking, but a refusal never is. If a single entry was refused, only that refusal is taken back
(:meth:`Standing.pardon`), so that the execution is parked without it.
"""

from __future__ import annotations

from celery_durable.errors import DurableError, EntryRefused, LeaseLost

__all__ = ["Standing"]

_FINAL = (LeaseLost, EntryRefused)


class Standing:
    """The standing of one run of an execution. Shared by its body, its buffer and the threads that serve both."""

    __slots__ = ("barred", "degraded", "refused")

    def __init__(self) -> None:
        #: Why nothing may be appended any more.
        self.refused: DurableError | None = None
        #: The error that every further request of the body gets.
        self.barred: BaseException | None = None
        #: The rest of the run is not durable.
        self.degraded = False

    @property
    def is_final(self) -> bool:
        """True if the refusal is permanent: neither another try nor another owner would change it."""
        return isinstance(self.refused, _FINAL)

    def refuse(self, error: DurableError) -> None:
        """Note that the journal accepts nothing more."""
        before = self.refused
        if before is None or isinstance(error, LeaseLost) or (isinstance(error, _FINAL) and not self.is_final):
            self.refused = error

    def bar(self, error: BaseException) -> BaseException:
        """Bar the body from continuing.

        :returns: the first reason for it.
        """
        if self.barred is None:
            self.barred = error
        return self.barred

    def check(self) -> None:
        """Refuse a request of the body where it must not continue."""
        if self.barred is not None:
            raise self.barred

    def degrade(self) -> None:
        """Continue without the journal."""
        self.degraded = True
        self.refused = None

    def lift(self) -> None:
        """Lift the bar: the body has ended, and the code that ends the execution needs to write to the journal."""
        self.barred = None

    def pardon(self) -> None:
        """Take back the refusal of a single entry: the execution's state is written without it. The body stays barred,
        so that Celery is not notified of an end that is none.
        """
        self.refused = None
