"""Calls of the result backend that Celery makes before it sends a message, kept with the message until it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery.result import GroupResult, result_from_tuple

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CHORD", "SIZE", "BackendCall", "repeat"]

#: Methods of a backend.
SIZE: Final = "set_chord_size"
CHORD: Final = "apply_chord"


@dataclass(frozen=True)
class BackendCall:
    """A call of the result backend that comes before a message is sent."""

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def tell(self, app: Celery) -> None:
        """Make the call now."""
        getattr(app.backend, self.method)(*self.args, **self.kwargs)

    def stored(self) -> list[Any]:
        """The same in plain types."""
        if self.method == CHORD:
            # The other arguments are for backends that publish a task which waits for the chord; that was captured.
            group_id, results = self.args[0]
            return [self.method, GroupResult(group_id, list(results)).as_tuple()]
        return [self.method, *self.args]


def repeat(app: Celery, stored: list[list[Any]]) -> None:
    """Make the deferred calls of the result backend. Repeating them does no harm."""
    for method, *args in stored:
        if method == CHORD:
            header: Any = result_from_tuple(args[0], app)
            app.backend.apply_chord((header.id, header.results), None)
        elif method == SIZE:
            app.backend.set_chord_size(*args)
