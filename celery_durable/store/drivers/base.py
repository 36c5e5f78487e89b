"""The usual reads and transactions, which nearly every delivery needs: sent to the driver directly where this pays.

SQLAlchemy builds these statements once, but its work each time that one is executed costs more than the rest of a
commit. So with a known driver, the usual case is sent directly: one execution, and no doubt about an earlier try.
Everything else goes through SQLAlchemy, and so does the usual case on all other databases.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

from ..records import Batch, Journaled, PayloadKind, StoredPayload

__all__ = ["Driver", "LastCommit", "is_usual", "to_journaled"]


class LastCommit(NamedTuple):
    """The commit with which an owner gives up an execution."""

    batch: Batch
    #: Further columns that it sets; see :func:`~.statements.let_go`.
    columns: tuple[str, ...]
    #: The execution continues by itself later.
    waits: bool
    #: The parameters of that statement, or of an insert if the batch inserts the row too.
    bound: dict[str, Any]
    #: The message, if this is the first commit.
    envelope: StoredPayload | None
    #: Kind of the payload that is stored with the new state.
    kind: PayloadKind
    payload: StoredPayload | None


class Driver(Protocol):
    """The usual reads and transactions.

    Errors are those that SQLAlchemy's engine would raise. A transaction that raises one may have been committed.
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
        """Insert an execution with its envelope, without waiting for the disk. False when there is one of this id."""

    def settle(self, last: LastCommit) -> bool:
        """Write the last entries, a payload and a new state under the fence; False when it did not hold."""

    def close(self) -> None:
        """Close what is kept open."""


def is_usual(batch: Batch) -> bool:
    """False if a batch has more than entries, or may be committed already."""
    if batch.again:
        return False
    for entry in batch.entries:  # noqa: SIM110  (a generator costs more than the loop)
        if entry.promise or entry.offspring:
            return False
    return True


#: A row of :data:`~.statements.SEGMENT` as a record, without an extra call in Python.
to_journaled = partial(tuple.__new__, Journaled)
