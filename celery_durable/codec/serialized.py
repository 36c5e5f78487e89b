"""Reads what Kombu's serializers have written.

A stored message says how it was serialized, and so does a stored outcome. But whoever can write to the database or the
broker can write that, too, so only what the application accepts is decoded. What is only passed on is passed on as
bytes, and not decoded at all.
"""

from __future__ import annotations

from typing import Any, Final

from kombu import serialization

from celery_durable.errors import PayloadError

from .preview import preview

__all__ = ["load"]

#: Kombu would look up any codec of Python's, those that decompress among them.
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "ascii", "binary"})


def load(data: Any, content_type: Any, encoding: Any, accept: frozenset[str], what: str) -> Any:
    """Serialized data, decoded.

    :param accept: content types that may be.
    :param what: names the data in an error.
    :raises PayloadError: where its content type is another one, or it is damaged.
    """
    if content_type not in accept:
        raise PayloadError(
            f"{what} is of the content type {preview(content_type, 80)}, which this application does not accept: "
            f"accept_content allows {', '.join(sorted(accept)) or 'none'}. Others may run code when they are read.",
            where=what,
        )
    if str(encoding).lower() not in _ENCODINGS:
        raise PayloadError(f"{what} has the unknown encoding {preview(encoding, 80)}.", where=what)
    try:
        return serialization.loads(data, content_type, encoding, accept=set(accept))
    # Damaged bytes, or classes that this process lacks: serializers raise nearly anything then.
    except Exception as error:
        raise PayloadError(f"{what} cannot be read here: {type(error).__name__}: {error}", where=what) from error
