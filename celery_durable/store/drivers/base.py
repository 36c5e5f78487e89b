"""What nearly every delivery asks of the database, and nothing else: sent to the driver directly, if that is worth it.

SQLAlchemy makes these statements, once; what it does for every execution of one costs more than all the rest of a
commit. So a database whose driver we know is called directly in the usual case: one execution, and no doubt about an
earlier try. Everything else goes through SQLAlchemy, and so does the usual case on all other databases.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

from ..records import Batch, Journaled, PayloadKind, StoredPayload

__all__ = ["Driver", "LastCommit", "is_usual", "to_journaled"]


class LastCommit(NamedTuple):
    """The commit with which an owner lets an execution go."""

    batch: Batch
    #: The columns that it sets besides; see :func:`~.statements.let_go`.
    columns: tuple[str, ...]
    #: It continues by itself.
    waits: bool
    #: The parameters of that statement, or of an insert where the batch brings the row too.
    bound: dict[str, Any]
    #: The message, where it is the first commit.
    envelope: StoredPayload | None
    #: What is kept with the new state, under this kind.
    kind: PayloadKind
    payload: StoredPayload | None


class Driver(Protocol):
    """The usual reads and transactions.

    Errors are those that an engine of SQLAlchemy's would raise. A transaction that raises one may have been committed.
    """

    def known(self, namespace: str, execution_id: str) -> bool:
        """Whether there is an execution of this id."""

    def segment(self, place: dict[str, Any]) -> list[Journaled]:
        """The entries that :data:`~.statements.SEGMENT` gives for these parameters."""

    def append(self, batch: Batch, lease_ms: int) -> bool:
        """Write entries under their fence, and prolong the lease; False when the fence did not hold."""

    def begin(self, batch: Batch, row: dict[str, Any], envelope: StoredPayload) -> bool:
        """Insert an execution with its first entries; False when there is one of this id."""

    def open_new(self, row: dict[str, Any], envelope: StoredPayload) -> bool:
        """Insert an execution with its envelope; nobody waits for the disk. False when there is one of this id."""

    def settle(self, last: LastCommit) -> bool:
        """Write the last entries, a payload and a new state under the fence; False when it did not hold."""

    def close(self) -> None:
        """Close what is kept open."""


def is_usual(batch: Batch) -> bool:
    """False for what takes more than entries, and for what may be in already."""
    if batch.again:
        return False
    for entry in batch.entries:  # noqa: SIM110  (a generator costs more than what it looks at)
        if entry.promise or entry.offspring:
            return False
    return True


#: A row of :data:`~.statements.SEGMENT` as a record, without a call in between.
to_journaled = partial(tuple.__new__, Journaled)
