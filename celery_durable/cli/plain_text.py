"""Makes text from the journal safe for a terminal.

Ids, names, errors and reasons may hold anything, and a terminal obeys control characters in them: it can be made to
hide lines, to write others, or to put text into a command line.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from celery_durable.codec.preview import printable

__all__ = ["PlainFormatter", "as_json_text", "clean"]


def clean(text: str) -> str:
    """``text`` with all but its line ends spelled out that a terminal would obey."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def as_json_text(value: Any) -> str:
    """JSON that any terminal may be given."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


class PlainFormatter(logging.Formatter):
    """As another formatter, but plain."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record; what a formatter of Celery's colours is no more."""
        return clean(self._inner.format(record))
