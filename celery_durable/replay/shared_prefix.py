"""The beginning of a journal that a rerun shares with the original execution.

It belongs to the original: the rerun reads it, and neither repeats nor undoes it. Every generation of a rerun begins
with it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from celery_durable.codec import Codec
from celery_durable.codec.refusal import understood
from celery_durable.store.records import META, SHARED_AT, EntryKind, Journaled

__all__ = ["SharedPrefix", "mark", "read_mark"]

_ROOT: Final = re.compile(r"\d+")


class SharedPrefix(NamedTuple):
    """Everything in the body before a position, including branches that begin there."""

    #: The execution that it belongs to.
    execution_id: str
    position: int
    #: How many steps these are.
    steps: int

    def holds(self, place: str) -> bool:
        """Whether a place (``"3"``, ``"4.0/1"``), or the path of a branch, lies in it."""
        root = _ROOT.match(place)
        return root is not None and int(root[0]) < self.position

    def refusal(self, problem: object) -> str:
        """Why a body that does not ask for these steps goes no further."""
        return (
            f"it is a rerun of {self.execution_id} from position {self.position}, and asks for other steps than those "
            "that it shares. Nothing was done again. Fix the body, and resume the execution; or cancel it, and rerun "
            f"{self.execution_id} from a position before the difference.\n"
            f"{problem}"
        )


def mark(shared: SharedPrefix, codec: Codec, at: int) -> Journaled:
    """The entry that marks a prefix as shared.

    :param at: ms since the epoch, UTC.
    """
    stored_codec, payload = codec.encode(shared._asdict(), f"what is shared with {shared.execution_id}")
    return Journaled(
        generation=1,
        scope=META,
        position=0,
        entry=SHARED_AT,
        kind=int(EntryKind.SHARED),
        effect=None,
        name="shared",
        fingerprint=None,
        key=None,
        epoch=1,
        attempt=1,
        at=at,
        duration_us=None,
        codec=stored_codec,
        payload=payload,
    )


def read_mark(row: Journaled, codec: Codec) -> SharedPrefix:
    """The shared prefix that an entry of :func:`mark` describes."""
    assert row.codec is not None
    assert row.payload is not None
    where = "what is shared with another execution"
    with understood(where):
        said = codec.decode(row.codec, row.payload, where)
        return SharedPrefix(said["execution_id"], said["position"], said["steps"])
