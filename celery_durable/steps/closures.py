"""Warns of guarded operations that use values from the enclosing code, which are in no fingerprint."""

from __future__ import annotations

import datetime as dt
import decimal
import logging
import uuid
from collections.abc import Callable
from typing import Any, Final

from .descriptor import StepDescriptor

__all__ = ["warn_of_captured"]

logger = logging.getLogger(__name__)

#: Values that an effect may depend on. Anything else is taken for a service, such as a client.
_DATA: Final = (int, float, complex, str, bytes, decimal.Decimal, dt.date, dt.time, dt.timedelta, uuid.UUID)
_warned: Final[set[str]] = set()


def warn_of_captured(descriptor: StepDescriptor, op: Callable[..., Any]) -> None:
    """Say so, once for each name, where a step that must not be repeated depends on values that its arguments do not
    tell: when they drift, it is taken for the same.
    """
    cells = getattr(op, "__closure__", None)
    if not cells or not descriptor._lasting or descriptor.fingerprint is not None or descriptor.name in _warned:
        return
    captured = [name for name, cell in zip(op.__code__.co_freevars, cells, strict=True) if _is_data(cell)]
    if captured:
        _warned.add(descriptor.name)
        logger.warning(
            "%s step %r uses %s from the code around it. A replay does not compare that: pass it as an argument, or "
            "declare with fingerprint= what identifies the call (logged once)",
            descriptor.effect.value,
            descriptor.name,
            ", ".join(map(repr, captured)),
        )


def _is_data(cell: Any) -> bool:
    try:
        value = cell.cell_contents
    except ValueError:  # it has none yet
        return False
    return isinstance(value, _DATA) and not isinstance(value, bool)
