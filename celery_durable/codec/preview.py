"""Values for people: one short line."""

from __future__ import annotations

import functools
import re
import reprlib
from typing import Any

__all__ = ["preview"]

#: Nobody asks for fewer characters than a number of this size has.
_SMALL = 10**15
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class _Repr(reprlib.Repr):
    """Looks at a few items of a few levels only, however large the value is."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = limit
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 12

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long integers in decimal.
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"{x:#x}"[: self.maxlong] + "..."


#: Made once for each limit: it takes longer than the text of a small value.
_repr = functools.cache(_Repr)


def preview(value: Any, limit: int = 200) -> str:
    """A ``repr`` that is safe to print: one line, at most ``limit`` characters, and never an exception.

    What an object's own ``__repr__`` raises is shown in its place.
    """
    if type(value) is int and -_SMALL < value < _SMALL:
        return repr(value)
    try:
        text = _repr(limit).repr(value)
    # repr() runs foreign code.
    except Exception as error:
        text = f"<{type(value).__qualname__}: repr raised {type(error).__name__}>"
    if not text.isprintable():
        text = _UNPRINTABLE.sub(_escape, text)
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


def _escape(match: re.Match[str]) -> str:
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in match.group())
