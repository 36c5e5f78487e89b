"""Why a value is refused, and how errors explain it.

A walk over a value does not know what the value is (that is ``where``), and does not carry a path, because
a path costs time on every value and is needed on almost none. A refusal is therefore an internal exception that
collects the path while it travels up, and becomes a :class:`~celery_durable.errors.PayloadError` at the edge.
"""

from __future__ import annotations

import contextlib
import datetime
import types
from collections.abc import Iterator
from typing import Any

from celery_durable.errors import JournalCorrupted, PayloadError, PayloadTooLarge

from .preview import one_line

__all__ = [
    "MAX_DEPTH",
    "OversizeValue",
    "Undecodable",
    "Unencodable",
    "corrupted",
    "deeper",
    "key_segment",
    "oversize",
    "path_text",
    "refuse",
    "type_name",
    "understood",
]

#: How many containers may be nested in each other. A container that contains itself ends here too. Chosen so
#: that neither the walk nor a JSON parser meets Python's recursion limit from inside a deep user stack.
MAX_DEPTH = 100

_PLAIN_DATA = (
    "Use plain data (None, bool, int, float, str, bytes, list, tuple, set, dict, datetime, Decimal, UUID, Path, "
    "Enum), a dataclass, a named tuple or a pydantic model; or pass only what is needed to get the object back, "
    "such as its id."
)
#: Path segments shown of a path longer than that, from each end.
_PATH_ENDS = 4
#: Characters shown of why bytes are damaged: they may be an attacker's.
_REASON_CHARS = 400


class Unencodable(Exception):
    """A value has no faithful stored form.

    :param reason: completes the sentence "<path> is ...", and says what to do.
    :param kind: the dotted name of the offending type.
    """

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        #: Segments from the offending value outwards; containers add theirs while this passes through them.
        self.path: list[str] = []

    def error(self, where: str) -> PayloadError:
        """The same for a user: ``where`` names the value, such as "the result of step 'charge'"."""
        path = path_text(self.path)
        return PayloadError(
            f"{where} cannot be stored in the journal: {path} is {self.reason}", where=where, path=path, kind=self.kind
        )


class OversizeValue(Exception):
    """The walk has already seen more than the limit allows; :class:`Codec` turns it into ``PayloadTooLarge``."""

    def error(self, where: str, limit: int) -> PayloadTooLarge:
        """The same for a user; ``limit`` in bytes."""
        return oversize(where, f"more than {limit}", limit)


class Undecodable(Exception):
    """The stored form is well-formed, but this program cannot give the value back; the text says why."""


def oversize(where: str, size: int | str, limit: int) -> PayloadTooLarge:
    """The error for ``where`` that takes ``size`` bytes where ``limit`` are allowed."""
    return PayloadTooLarge(
        f"{where} takes {size} bytes encoded; the limit is {limit} bytes (setting durable_max_payload_bytes). Store "
        "the data elsewhere and pass a reference to it, or raise the setting.",
        where=where,
        size=size,
        limit=limit,
    )


def corrupted(where: str, reason: str) -> JournalCorrupted:
    """The error for stored bytes that no codec can have written, or that were changed since."""
    return JournalCorrupted(
        f"{where} cannot be read back from the journal: {one_line(reason, _REASON_CHARS)}. The row was changed or "
        "damaged after it was written; restore it from a backup, or start the work again under another id.",
        where=where,
    )


@contextlib.contextmanager
def understood(where: str) -> Iterator[None]:
    """Around the reading of what this library keeps for itself: where its parts are missing, or are something else, it
    was not written by us.

    :raises JournalCorrupted: instead of what Python raises then.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise corrupted(where, f"{type(error).__name__}: {error}") from error


def path_text(segments: list[str]) -> str:
    """``$.items[3].price`` from segments that were collected from the inside out."""
    outwards = segments[::-1]
    if len(outwards) > 2 * _PATH_ENDS:
        outwards = [*outwards[:_PATH_ENDS], "...", *outwards[-_PATH_ENDS:]]
    return "$" + "".join(outwards)


def key_segment(key: Any) -> str:
    """The path segment of a dict entry or a field."""
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{key[:40]!r}]"
    if type(key) in (int, float, bool):
        return f"[{key!r}]"
    return f"[<{type(key).__qualname__}>]"


def deeper(depth: int, value: Any) -> int:
    """``depth`` + 1, or a refusal when ``value`` is nested too deep."""
    if depth >= MAX_DEPTH:
        raise Unencodable(
            f"nested deeper than {MAX_DEPTH} containers, or a container that contains itself (a "
            f"{type(value).__qualname__}). Flatten it, or break the cycle, for example by storing ids.",
            type_name(type(value)),
        )
    return depth + 1


def type_name(kind: type) -> str:
    """Dotted name of a class, without ``builtins``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def refuse(value: Any) -> Unencodable:
    """The refusal of a value of a type that nothing encodes; the caller raises it."""
    kind = type(value)
    name = type_name(kind)
    return Unencodable(f"a {name!r}, {_why(value, kind)}", name)


def _why(value: Any, kind: type) -> str:
    if isinstance(value, types.CoroutineType):
        return "a coroutine that was never awaited. Await it, and use its result."
    if isinstance(value, BaseException):
        return "an exception, which is not a value. Raise it, or use its text."
    if isinstance(value, (types.GeneratorType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        return f"which is code and not data. {_PLAIN_DATA}"
    if isinstance(value, datetime.tzinfo):
        return "a time zone that cannot be rebuilt. Use datetime.timezone or zoneinfo.ZoneInfo."
    if kind.__qualname__ == "defaultdict":
        return "which holds a function. Convert it with dict(...)."
    for base in _SUBCLASSED:
        if isinstance(value, base):
            return (
                f"a subclass of {base.__name__} that would come back as a plain {base.__name__}. "
                f"Convert it first, with {_conversion(base)}."
            )
    return f"which cannot be rebuilt from data. {_PLAIN_DATA}"


_SUBCLASSED: tuple[type, ...] = (
    str,
    int,
    float,
    complex,
    bytes,
    bytearray,
    dict,
    list,
    tuple,
    set,
    frozenset,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
)


def _conversion(base: type) -> str:
    if base is datetime.datetime:
        return "datetime.fromisoformat(value.isoformat())"
    if base in (datetime.date, datetime.time, datetime.timedelta):
        return f"the {base.__name__} constructor"
    return f"{base.__name__}(...)"
