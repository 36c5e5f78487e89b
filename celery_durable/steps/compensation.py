"""What there is to undo when a body fails or is cancelled, in the order in which it is undone."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from celery_durable.effects import Intent, OnAmbiguous
from celery_durable.errors import ResultLost
from celery_durable.replay.saga import Saga

from .decorator import Step
from .descriptor import StepDescriptor

__all__ = ["Undo", "Undos", "describe_undo", "result_to_undo"]

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


class Undos:
    """Of one run of a body, as far as it has come.

    :param saga: what the journal says of it.
    """

    def __init__(self, saga: Saga) -> None:
        self._saga = saga
        self._undos: list[Undo] = []
        #: How many are registered at each place.
        self._numbers: Counter[Order] = Counter()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._undos)

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
            if self._saga.is_shared(scope, position, before=before):
                self._saga.left_alone += 1
                return
            self._undos.append(Undo(order, self._numbers[order], descriptor, op, args, kwargs))
            self._numbers[order] += 1

    def backwards(self) -> list[Undo]:
        """What there is to undo: the latest first, by its place in the body, whichever branch was faster."""
        with self._lock:
            return sorted(self._undos, key=lambda undo: (undo.order, undo.number), reverse=True)


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

    :param place: what is undone; in place of the arguments, which may have no canonical form.
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
