"""The journal's rows: fenced appends, reads by segment, global guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from celery_durable.errors import JournalUnavailable

from .children import insert_children
from .database import Database
from .drivers.base import Driver, is_usual
from .first_commit import insert_new, new_row
from .group_fence import fence_all
from .journal_reader import GROUP, JournalReader, journaled, to_execution
from .promises.making import insert_promises
from .records import Batch, Birth, Entry, EntryKind, Fence, GuardHolder, State
from .rows import NotStorable, lease_lost, parts
from .server_errors import cause
from .statements import BY_PK, FENCE, FENCE_CANCELLED
from .tables import executions, guards, journal, now_ms

__all__ = ["Journal", "NotStorable", "insert_entries"]

_x = executions.c
_j = journal.c

_INSERT = sa.insert(journal).values(at=now_ms())


def insert_entries(connection: Connection, batches: Sequence[Batch]) -> None:
    """Write entries, with the promises and child tasks that come with them; the caller holds the fence."""
    rows = [_row(batch, entry) for batch in batches for entry in batch.entries]
    if rows:
        for part in parts(rows, "payload"):
            connection.execute(_INSERT, part)
        insert_promises(connection, batches)
        insert_children(connection, batches)


def _row(batch: Batch, entry: Entry) -> dict[str, Any]:
    codec, payload = entry.payload if entry.payload is not None else (None, None)
    return {
        "pk": batch.fence.pk,
        "generation": batch.generation,
        "scope": entry.scope,
        "position": entry.position,
        "entry": entry.entry,
        "kind": int(entry.kind),
        "effect": None if entry.effect is None else int(entry.effect),
        "name": entry.name,
        "fingerprint": entry.fingerprint,
        "key": entry.key,
        "epoch": batch.fence.epoch,
        "attempt": entry.attempt,
        "duration_us": entry.duration_us,
        "codec": codec,
        "payload": payload,
    }


class Journal(JournalReader):
    """Appends to and reads from the journal.

    :param lease_ms: every append prolongs the lease by this many milliseconds.
    """

    def __init__(self, database: Database, *, lease_ms: int) -> None:
        super().__init__(database)
        self._lease_ms = lease_ms

    # -- appending ------------------------------------------------------------------------------------------

    def append(
        self, batches: Sequence[Batch], cancelled: set[Fence] | None = None, busy: set[Fence] | None = None
    ) -> set[Fence]:
        """Commit the entries of several executions in one transaction, each under its own fence.

        :param cancelled: gets the fences of executions whose cancellation was requested.
        :param busy: gets the fences of executions that somebody else has locked: they are to be committed alone. If it
            is None, or there is only one execution, this waits for the lock.
        :returns: the fences that no longer hold; nothing was written for those.
        :raises JournalUnavailable: when it could not be committed in time. Some of it may have been.
        :raises NotStorable: when the database refuses a value; nothing was written.
        """
        # One order of locking for all processes: no dead-locks between group commits.
        ordered = batches if len(batches) == 1 else sorted(batches, key=lambda b: b.fence.pk)
        shared = busy is not None and len(batches) > 1 and len({batch.fence for batch in batches}) > 1
        tries = 0

        def together(connection: Connection) -> set[Fence]:
            nonlocal tries
            tries += 1
            found = fence_all(connection, ordered, self._lease_ms, again=tries > 1)
            insert_entries(connection, found.held)
            if busy is not None:
                busy.clear()
                busy.update(found.busy)
            if cancelled is not None:
                cancelled.update(found.cancelled)
            return found.lost

        def work(connection: Connection) -> set[Fence]:
            nonlocal tries
            tries += 1
            lost: set[Fence] = set()
            held = []
            for batch in ordered:
                if (tries > 1 or batch.again) and self._present(connection, batch):
                    continue  # our own commit, whose acknowledgement was lost
                if self._begin(connection, batch):
                    held.append(batch)
                elif batch.birth is not None and self._present(connection, batch):
                    continue  # an earlier try of ours was still under way until just now
                elif self._fence(connection, batch, FENCE):
                    held.append(batch)
                elif self._fence(connection, batch, FENCE_CANCELLED):
                    held.append(batch)
                    if cancelled is not None:
                        cancelled.add(batch.fence)
                else:
                    lost.add(batch.fence)
            insert_entries(connection, held)
            return lost

        def single(driver: Driver) -> set[Fence] | None:
            nonlocal tries
            tries += 1
            [batch] = ordered
            birth = batch.birth
            if birth is None:
                done = driver.append(batch, self._lease_ms)
            else:
                done = driver.begin(batch, self._new_row(batch, birth), birth.request.envelope())
            return set() if done else None

        alone = len(ordered) == 1 and is_usual(ordered[0])
        try:
            return self._database.write(together if shared else work, single=single if alone else None)
        except (DataError, IntegrityError, ValueError, OverflowError) as error:
            raise NotStorable(cause(error)) from error
        except (SQLAlchemyError, AttributeError, TypeError, LookupError, MemoryError) as error:
            # Not every exception: one that a signal raises in a commit is for the body. These come from the server, or
            # are a fault of ours, and may not happen again when the message comes back.
            raise JournalUnavailable(f"the commit failed: {cause(error)}") from error

    def append_in(self, connection: Connection, batch: Batch) -> None:
        """Write entries in somebody else's transaction, if the fence holds.

        :raises LeaseLost: when it does not; then nothing may be committed.
        """
        if not self._fence(connection, batch):
            row = connection.execute(sa.select(_x.epoch, _x.state).where(_x.pk == batch.fence.pk)).first()
            raise lease_lost(row)
        insert_entries(connection, [batch])

    def is_in(self, batch: Batch) -> bool:
        """Whether a batch is committed after a commit without an answer. Waits for a commit that is under way.

        :raises JournalUnavailable: when this cannot be found out.
        """
        return self._database.write(lambda c: self._present(c, batch))

    def verify(self, fence: Fence) -> bool:
        """True while the lease of ``fence`` is held; prolongs it."""
        return self._database.write(lambda c: self._fence(c, Batch(fence, 0, ())))

    def _begin(self, connection: Connection, batch: Batch) -> bool:
        """Write the row of an execution that has none; False if there is one, which may be our own."""
        birth = batch.birth
        if birth is None:
            return False
        return insert_new(connection, self._new_row(batch, birth), birth.request.envelope())

    def _new_row(self, batch: Batch, birth: Birth) -> dict[str, Any]:
        return new_row(batch.fence.pk, birth.namespace, birth.request, self._lease_ms, batch.steps)

    def _fence(self, connection: Connection, batch: Batch, statement: sa.Update = FENCE_CANCELLED) -> bool:
        values = {
            "b_pk": batch.fence.pk,
            "b_epoch": batch.fence.epoch,
            "b_lease": self._lease_ms,
            "b_steps": batch.steps,
        }
        return connection.execute(statement, values).rowcount == 1

    @staticmethod
    def _present(connection: Connection, batch: Batch) -> bool:
        """Whether an earlier try has written this batch."""
        if not batch.entries:
            return False
        # The server may still be working on that try, although we lost the connection: then this waits until it ends.
        connection.execute(BY_PK, {"pk": batch.fence.pk})
        first = batch.entries[0]
        place = {
            "pk": batch.fence.pk,
            "generation": batch.generation,
            "scope": first.scope,
            "position": first.position,
        }
        return any(
            row.entry == first.entry and row.epoch == batch.fence.epoch for row in connection.execute(GROUP, place)
        )

    def append_global(self, batch: Batch, intent: Entry, take: GuardHolder | None = None) -> GuardHolder | Fence | None:
        """Commit ``batch`` and ``intent`` if nobody holds the intent's key yet.

        :param take: a holder who is known not to use the key; it is taken over from that one.
        :returns: ``None`` when it is ours now, the holder when it is not (nothing is written then), the fence
            itself when it no longer holds.
        """
        assert intent.key is not None
        assert intent.fingerprint is not None
        key, fingerprint, pk = intent.key, intent.fingerprint, batch.fence.pk

        def work(connection: Connection) -> GuardHolder | Fence | None:
            holder = connection.execute(sa.select(guards).where(guards.c.key == key).with_for_update()).first()
            mine = holder is not None and (holder.pk, holder.generation, holder.scope, holder.position) == (
                pk,
                batch.generation,
                intent.scope,
                intent.position,
            )
            takes = (
                holder is not None
                and take is not None
                and (holder.pk, holder.generation)
                == (
                    take.pk,
                    take.generation,
                )
            )
            if holder is not None and not mine and not takes:
                return self._holder(connection, holder, pk)
            if mine and self._present(connection, Batch(batch.fence, batch.generation, (intent,))):
                return None
            if not self._fence(connection, batch):
                return batch.fence
            if not mine:
                values = {"pk": pk, "generation": batch.generation, "scope": intent.scope, "position": intent.position}
                if takes:
                    connection.execute(sa.update(guards).where(guards.c.key == key).values(**values))
                else:
                    connection.execute(
                        sa.insert(guards).values(key=key, fingerprint=fingerprint, created_at=now_ms(), **values)
                    )
            insert_entries(connection, [Batch(batch.fence, batch.generation, (*batch.entries, intent))])
            return None

        try:
            return self._database.write(work)
        except IntegrityError:
            # Somebody inserted the key between our query and our insert: now the query finds it.
            return self._database.write(work)

    def _holder(self, connection: Connection, row: Any, own_pk: int) -> GuardHolder:
        execution = connection.execute(sa.select(executions, now_ms().label("now")).where(_x.pk == row.pk)).first()
        place = {"pk": row.pk, "generation": row.generation, "scope": row.scope, "position": row.position}
        return GuardHolder(
            pk=row.pk,
            generation=row.generation,
            fingerprint=bytes(row.fingerprint),
            execution=None if execution is None else to_execution(execution),
            # An earlier generation of the execution that asks is not under way.
            live=execution is not None
            and row.pk != own_pk
            and execution.state == State.RUNNING.value
            and execution.lease_until > execution.now,
            entries=[journaled(e) for e in connection.execute(GROUP, place)],
        )

    # -- folding --------------------------------------------------------------------------------------------

    def fold(self, batch: Batch, last: int) -> bool:
        """Replace the rows of a scope, from the position of a checkpoint to ``last``, by that checkpoint.

        :returns: False when the fence no longer holds.
        """
        [checkpoint] = batch.entries
        assert checkpoint.kind is EntryKind.CHECKPOINT

        def work(connection: Connection) -> bool:
            if self._present(connection, batch):
                return True  # our own commit, whose acknowledgement was lost
            if not self._fence(connection, batch):
                return False
            connection.execute(
                sa.delete(journal).where(
                    _j.pk == batch.fence.pk,
                    _j.generation == batch.generation,
                    _j.scope == checkpoint.scope,
                    _j.position.between(checkpoint.position, last),
                )
            )
            insert_entries(connection, [batch])
            return True

        return self._database.write(work)
