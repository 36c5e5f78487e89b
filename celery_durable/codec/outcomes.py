"""The form of a stored outcome: the value that a body returned."""

from __future__ import annotations

from typing import Any

from .codec import Codec
from .refusal import corrupted
from .serialized import load

__all__ = ["value_of"]


def value_of(codec: Codec, outcome: Any, where: str) -> Any:
    """The value in what is stored of a task's outcome.

    :raises PayloadError: when it was stored in a form that the application does not accept, or is none.
    """
    if type(outcome) is dict:
        if outcome.keys() == {"value"}:
            return outcome["value"]
        if outcome.keys() == {"content_type", "encoding", "data"}:
            return load(outcome["data"], outcome["content_type"], outcome["encoding"], codec.outcomes, where)
    raise corrupted(where, "it is not the outcome of a task")
