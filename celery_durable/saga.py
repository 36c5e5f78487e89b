"""What is to be undone when a body fails or is cancelled, and how far that has come.

Undoing goes through the journal like everything else: the decision is committed before the first undo, with every
result that came before it; each undo is a guarded step in a scope of its own. After a crash the body replays up to
where its journal ends, which tells once more what there is to undo, and is left there.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .effects import Intent, OnAmbiguous
from .errors import ResultLost
from .step import Step, StepDescriptor
from .store.records import META, TOLD, Entry, EntryKind, Journaled, StoredPayload

__all__ = ["UNDO", "Saga", "Undo", "describe_undo", "result_to_undo"]

#: The scope in which undos stand, in the order in which they are made.
UNDO: Final = "#undo"

#: Where in the body something stands, for sorting: position, before (0) or at (1) its step, branch of it.
Order = tuple[tuple[int, int, int], ...]


class Undo(NamedTuple):
    """One thing to do when the body fails."""

    order: Order
    #: Which one of those that are registered at the same place.
    number: int
    descriptor: StepDescriptor
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Saga:
    """Of one run of a body."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._lock = threading.Lock()
        #: The journal says that this execution has something to undo, so that a cancellation does not just end it.
        self.marked = False
        #: The body has failed, or was cancelled: nothing new is begun, what was done is undone.
        self.undoing = False
        #: Why, as it is journaled: the error of the body; None for a cancellation.
        self.cause: StoredPayload | None = None
        #: The decision is journaled; by an earlier run, in which case the cause is the one that was journaled then.
        self.decided = self.recorded = False
        #: Celery was told already how it ends.
        self.told = False
        #: Held while the mark is on its way into the journal.
        self.marking = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._undos)

    def load(self, row: Journaled) -> None:
        """Take over what an earlier run has journaled."""
        if row.kind == EntryKind.SAGA:
            self.marked = True
        elif row.kind == EntryKind.UNDOING:
            self.marked = self.undoing = self.decided = self.recorded = True
            self.told = row.name == TOLD
            if row.codec is not None and row.payload is not None:
                self.cause = StoredPayload(row.codec, row.payload)

    def add(
        self,
        scope: str,
        position: int,
        descriptor: StepDescriptor,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        before: bool = False,
    ) -> None:
        """Undo this when the body fails.

        :param before: it stands before the step at this position, and not for it.
        """
        order = _order(scope, position, before)
        with self._lock:
            number = sum(1 for undo in self._undos if undo.order == order)
            self._undos.append(Undo(order, number, descriptor, op, args, kwargs))

    def backwards(self) -> list[Undo]:
        """What there is to undo: the latest first, by its place in the body, whichever branch was faster."""
        with self._lock:
            return sorted(self._undos, key=lambda undo: (undo.order, undo.number), reverse=True)

    def mark(self) -> Entry:
        """The entry that says that there is something to undo."""
        self.marked = True
        return Entry(META, 0, 0, EntryKind.SAGA, None, "saga")

    def decide(self, cause: StoredPayload | None) -> Entry:
        """The entry that says that the body is undone from now on."""
        self.undoing = self.decided = True
        self.cause = cause
        return Entry(META, 0, 1, EntryKind.UNDOING, None, "undoing", payload=cause)


def _order(scope: str, position: int, before: bool) -> Order:
    parts: list[tuple[int, int, int]] = []
    for part in scope.split("/") if scope else ():
        at, _, branch = part.partition(".")
        parts.append((int(at), 1, int(branch) + 1))
    return (*parts, (position, 0 if before else 1, 0))


def describe_undo(function: Callable[..., Any], name: str, place: str) -> tuple[StepDescriptor, Callable[..., Any]]:
    """The step that undoes something, and its operation.

    A ``@step`` function keeps its effect, its policy and its retries. A plain one is run again where nobody knows
    whether it was, with the same idempotency key.

    :param place: what is undone; in the place of the arguments, which may have no canonical form.
    """
    op = function
    if isinstance(function, Step):
        descriptor, op = function.descriptor, function.operation
    else:
        descriptor = StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN)
    undo = dataclasses.replace(
        descriptor, name=f"undo {name}"[:200], fingerprint=functools.partial(_place, place), compensate=None
    )
    return undo, op


def _place(place: str, *args: Any, **kwargs: Any) -> str:
    return place


def result_to_undo(value: Any, error: Exception | None) -> tuple[bool, Any]:
    """Whether a step has happened, and the value that its compensation gets: None where the result was lost."""
    if error is None:
        return True, value
    return isinstance(error, ResultLost), None
