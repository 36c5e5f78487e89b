"""Bytes with their codec, the right to write, and other values that all records use."""

from __future__ import annotations

import enum
from typing import NamedTuple, NoReturn

from celery_durable.errors import JournalCorrupted

__all__ = ["Fence", "PayloadKind", "Stored", "StoredPayload"]


class Stored:
    """For an enumeration: an unknown value comes from a row, not from a user, so it is an error of the journal."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise JournalCorrupted(
            f"a row of the journal says {str(value)[:80]!r} where this version of celery_durable knows no such "
            f"{cls.__name__}. It was changed from outside, or written by a newer version."
        )


class PayloadKind(enum.IntEnum):
    """The kind of a payload row. Never reuse a number."""

    #: The Celery message, to be sent again.
    ENVELOPE = 1
    #: The value or error with which the execution ended.
    OUTCOME = 2
    #: Why it was parked, cancelled or failed from outside; text.
    REASON = 3


class StoredPayload(NamedTuple):
    """Encoded bytes and the tag of the codec that made them."""

    codec: int
    data: bytes


class Fence(NamedTuple):
    """The right to write to an execution's journal, as it was granted."""

    pk: int
    epoch: int
