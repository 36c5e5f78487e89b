"""Values for people: one short line."""

from __future__ import annotations

import functools
import re
import reprlib
from typing import Any, Final

__all__ = ["one_line", "preview", "printable"]

#: Nobody asks for fewer characters than a number of this size has.
_SMALL = 10**15
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
#: What a token looks like, a promise's (43 characters) or somebody else's: a long word in both cases.
_TOKEN_LENGTH: Final = 43
_TOKEN = re.compile(rf"(?=[\w\-]*[A-Z])(?=[\w\-]*[a-z])[\w\-]{{{_TOKEN_LENGTH},}}", re.ASCII)
_HIDDEN: Final = "***"


class _Repr(reprlib.Repr):
    """Looks at a few items of a few levels only, however large the value is; never shows what looks like a token."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = limit
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 12

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long integers in decimal.
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"{x:#x}"[: self.maxlong] + "..."

    def repr_str(self, x: str, level: int) -> str:
        if len(x) >= _TOKEN_LENGTH:
            x = _without_tokens(x, self.maxstring)
        return super().repr_str(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            text = _without_tokens(repr(x), self.maxother)
        except Exception as error:
            return f"<{type(x).__qualname__}: repr raised {type(error).__name__}>"
        return text if len(text) <= self.maxother else _middle_cut(text, self.maxother)


def _without_tokens(text: str, limit: int) -> str:
    """``text`` without what looks like a token, before anything is cut, for half of one can be enough.

    :param limit: characters that are shown, from both ends; what lies far from them is left out.
    """
    ends = limit + _TOKEN_LENGTH
    if len(text) > 3 * ends:
        text = text[:ends] + "\N{HORIZONTAL ELLIPSIS}" * limit + text[-ends:]
    return _TOKEN.sub(_HIDDEN, text)


def _middle_cut(text: str, limit: int) -> str:
    half = max((limit - 3) // 2, 0)
    return f"{text[:half]}...{text[len(text) - max(limit - 3 - half, 0) :]}"


#: Made once for each limit: it takes longer than the text of a small value.
_repr = functools.cache(_Repr)


def preview(value: Any, limit: int = 200) -> str:
    """A ``repr`` that is safe to print: one line, at most ``limit`` characters, and never an exception. What looks like
    a token is not shown.

    What an object's own ``__repr__`` raises is shown in its place.
    """
    if type(value) is int and -_SMALL < value < _SMALL:
        return repr(value)
    try:
        text = _repr(limit).repr(value)
    # repr() runs foreign code.
    except Exception as error:
        text = f"<{type(value).__qualname__}: repr raised {type(error).__name__}>"
    return one_line(text, limit)


def one_line(text: str, limit: int) -> str:
    """``text`` in one line of at most ``limit`` characters, without what a terminal would obey."""
    if len(text) > limit:
        text = text[: max(limit - 3, 0)] + "..."
    text = printable(text)
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


def printable(text: str) -> str:
    """``text`` in one line, with everything spelled out that a terminal would obey: escapes, overtyping, direction."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in match.group())
