"""The queries of recovery: due executions, dead owners, published messages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from .database import Database
from .outbox import Existing, IdTaken, existing, known_ids, new_pks, row_of, wakes
from .records import PayloadKind, Published, State, StoredPayload
from .rows import quarantine, spacing
from .tables import executions, now_ms, now_once, outbox, payloads

__all__ = ["Claims", "DueExecution", "Existing", "IdTaken", "Parked", "Published", "RecoveryStore"]

_x = executions.c
_o = outbox.c

#: If less than this part of a lease is left, it should have been renewed some time ago.
_LATE = 0.6
#: How often an insert is tried again after a race for an id.
_TRIES = 8


class Parked(NamedTuple):
    """An execution that was quarantined instead of being sent once more."""

    id: str
    task: str
    reason: str


@dataclass(frozen=True)
class DueExecution:
    """An execution that recovery has claimed: its message is to be sent."""

    pk: int
    id: str
    task: str
    state: State
    #: 0 if it never ran.
    epoch: int
    sends: int
    envelope: StoredPayload | None


class Claims(NamedTuple):
    """One round of recovery."""

    due: list[DueExecution]
    parked: list[Parked]
    #: Milliseconds until the next row is due; ``None`` when there is none. Zero or less: claim again at once.
    next_ms: int | None
    #: The same for the messages of tasks that are not durable: see :class:`~.outbox.OutboxStore`.
    outbox_ms: int | None


class RecoveryStore:
    """Claims of one namespace.

    :param lease_ms: also the spacing of repeated sends of one message; it doubles with every send.
    """

    def __init__(self, database: Database, *, namespace: str, lease_ms: int, max_attempts: int) -> None:
        self._database = database
        self._namespace = namespace
        self._lease_ms = lease_ms
        self._max_attempts = max_attempts
        #: Owners renew when a third of a lease is over: one that has less time left than this is late.
        self._late_ms = int(lease_ms * _LATE)

    def claim(self, limit: int, *, spare_owners: Callable[[], bool] = lambda: False) -> Claims:
        """Take up to ``limit`` executions whose message must be sent: leases that ran out, waits that ended, messages
        that never started, outcomes that were not passed on to Celery.

        Rows that another service holds are skipped. A claimed row comes up again after a while that doubles each
        time, because a message may just be waiting in a long queue.

        :param spare_owners: asked once the database answers; True: take over only from processes that are known to be
            dead.
        """
        ours = _x.namespace == self._namespace

        def work(connection: Connection) -> Claims:
            spared = spare_owners()
            lapsed = sa.or_(_x.state != State.RUNNING.value, _x.lease_until <= (0 if spared else now_once()))
            query = (
                sa.select(_x.pk, _x.id, _x.task, _x.state, _x.epoch, _x.sends, _x.attempts)
                .where(ours, _x.wake_at <= now_once(), lapsed)
                .order_by(_x.wake_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(query).all()
            parked = [r for r in rows if r.state == State.RUNNING.value and r.attempts >= self._max_attempts]
            reasons = [Parked(r.id, r.task, quarantine(connection, r, self._max_attempts)) for r in parked]
            claimed = [r for r in rows if r not in parked]
            pks = [r.pk for r in claimed]
            if pks:
                again = now_ms() + spacing(self._lease_ms, _x.sends)
                change = sa.update(executions).where(_x.pk.in_(pks))
                # In this order, because MySQL uses the new value of a column that it has already set.
                connection.execute(change.ordered_values((_x.wake_at, again), (_x.sends, _x.sends + 1)))
            envelopes = self._envelopes(connection, pks)
            # When the next ones are due, here and in the outbox: so an empty outbox costs no statement of its own.
            following, unsent = connection.execute(
                sa.select(
                    _until_first(_x.wake_at, ours, _x.wake_at.is_not(None), lapsed if spared else sa.true()),
                    _until_first(_o.wake_at, _o.namespace == self._namespace),
                )
            ).one()
            if following is not None and following <= self._late_ms:
                self._try_to_write(connection)
            due = [
                DueExecution(r.pk, r.id, r.task, State(r.state), r.epoch, r.sends, envelopes.get(r.pk)) for r in claimed
            ]
            return Claims(due, reasons, *(None if ms is None else int(ms) for ms in (following, unsent)))

        return self._database.write(work)

    def _try_to_write(self, connection: Connection) -> None:
        """If an owner is late to renew its lease, find out whether it could have.

        A full disk, or a read-only server, can be read but not written. So this writes to the late row before its lease
        runs out: if that fails, the claim fails, and the service knows that no owner can renew a lease.
        """
        late = (
            sa.select(_x.pk)
            .where(
                _x.namespace == self._namespace,
                _x.wake_at <= now_once() + self._late_ms,
                _x.state == State.RUNNING.value,
                _x.lease_until > now_once(),
            )
            .order_by(_x.wake_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        pk = connection.execute(late).scalar()
        if pk is not None:
            # A different value, because a database may skip an update without a change; this one has no consequences.
            connection.execute(sa.update(executions).where(_x.pk == pk).values(wake_at=_x.wake_at - 1))

    @staticmethod
    def _envelopes(connection: Connection, pks: Sequence[int]) -> dict[int, StoredPayload]:
        if not pks:
            return {}
        query = sa.select(payloads.c.pk, payloads.c.codec, payloads.c.data).where(
            payloads.c.pk.in_(list(pks)), payloads.c.kind == int(PayloadKind.ENVELOPE)
        )
        return {r.pk: StoredPayload(r.codec, bytes(r.data)) for r in connection.execute(query)}

    def unsent(self, pks: Sequence[int], delay_ms: int) -> None:
        """Claimed messages could not be sent: let them come up again after ``delay_ms``, as if they had not been."""
        if pks:
            mine = sa.and_(_x.pk.in_(list(pks)), _x.wake_at.is_not(None), _x.sends > 0)
            values = {"wake_at": now_ms() + delay_ms, "sends": _x.sends - 1}
            self._database.write(lambda c: c.execute(sa.update(executions).where(mine).values(values)))

    def forsake(self, owner_prefix: str) -> int:
        """A process is known to be dead: its leases run out now.

        :param owner_prefix: the beginning of all owner ids of that process.
        :returns: how many leases it held.
        """
        if not owner_prefix:
            raise ValueError("an empty owner prefix would take every lease away")
        mine = sa.and_(
            _x.namespace == self._namespace,
            _x.state == State.RUNNING.value,
            _x.pruned_at.is_(None),
            # Not a comparison with < or >: their order depends on the database's collation.
            sa.func.substr(_x.owner, 1, len(owner_prefix)) == owner_prefix,
        )

        def work(connection: Connection) -> int:
            # Found first, without locks, because the scan also passes running executions of other owners. Without a
            # condition on wake_at, because its index would lead past all suspended executions.
            pks = connection.execute(sa.select(_x.pk).where(mine)).scalars().all()
            if not pks:
                return 0
            change = (
                sa.update(executions)
                .where(_x.pk.in_(pks), mine, _x.wake_at.is_not(None))
                .values(lease_until=0, wake_at=now_ms())
            )
            return connection.execute(change).rowcount

        return self._database.write(work)

    def publish(
        self, messages: Sequence[Published], then: Callable[[Connection, Sequence[int]], None] | None = None
    ) -> list[int | None]:
        """Record messages before they are published, in one transaction.

        :param then: writes what belongs to them in the same transaction; gets the keys of the new rows.
        :returns: the primary key of each, or that of the existing row if the id is known already. None if the caller
            chose the id and the same call is recorded already: it is not to be sent.
        :raises IdTaken: if a chosen id belongs to another call; then nothing was recorded.
        """
        # Chosen here, so that a second try recognises the rows of the first one.
        keys = new_pks(len(messages))
        chosen = any(message.args_hash is not None for message in messages)
        if not chosen:
            with contextlib.suppress(IntegrityError):
                return self._database.write(lambda c: self._publish(c, keys, messages, then, look=False))
        for _ in range(_TRIES):
            # If this fails, somebody else has just inserted one of the ids.
            with contextlib.suppress(IntegrityError):
                return self._database.write(lambda c: self._publish(c, keys, messages, then, look=True))
        return self._database.write(lambda c: self._publish(c, keys, messages, then, look=True))

    def _publish(
        self,
        connection: Connection,
        keys: Sequence[int],
        messages: Sequence[Published],
        then: Callable[[Connection, Sequence[int]], None] | None,
        *,
        look: bool,
    ) -> list[int | None]:
        known = self._known(connection, messages) if look else {}
        fresh: dict[str, tuple[int, Published]] = {}
        ours = set(keys)
        answer: list[int | None] = []
        rows: list[dict[str, Any]] = []
        data: list[dict[str, Any]] = []
        for pk, message in zip(keys, messages, strict=True):
            if message.id in fresh:
                answer.append(_twice(*fresh[message.id], message))
                continue
            if message.id in known:
                answer.append(self._recorded(connection, ours, message, known[message.id]))
                continue
            fresh[message.id] = pk, message
            answer.append(pk)
            rows.append(row_of(pk, self._namespace, message, self._lease_ms))
            if message.envelope is not None:
                codec, stored = message.envelope
                data.append({"pk": pk, "kind": int(PayloadKind.ENVELOPE), "codec": codec, "data": stored})
        if rows:
            connection.execute(sa.insert(executions).values(**wakes()), rows)
        if data:
            connection.execute(sa.insert(payloads), data)
        if rows and then is not None:
            then(connection, [row["pk"] for row in rows])
        return answer

    def _known(self, connection: Connection, messages: Sequence[Published]) -> dict[str, Any]:
        return known_ids(connection, self._namespace, messages)

    @staticmethod
    def _recorded(connection: Connection, ours: Collection[int], message: Published, before: Any) -> int | None:
        """The result for a message whose id has a row already."""
        if before.pk in ours or message.args_hash is None:
            return int(before.pk)
        if before.args_hash is not None and bytes(before.args_hash) == message.args_hash:
            return None
        raise IdTaken(message, existing(connection, before))

    def adopt(self, pk: int, args_hash: bytes) -> None:
        """Store the hash of a call with the execution, which has turned out to belong to this call."""
        self._database.write(
            lambda c: c.execute(
                sa.update(executions).where(_x.pk == pk, _x.args_hash.is_(None)).values(args_hash=args_hash)
            )
        )


def _until_first(wake_at: sa.ColumnElement[int], *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
    """Milliseconds until the first of these is due. Not min(), for which MariaDB reads all rows."""
    return sa.select(wake_at - now_once()).where(*conditions).order_by(wake_at).limit(1).scalar_subquery()


def _twice(pk: int, first: Published, second: Published) -> int | None:
    """The result for a message if another one in the batch has its id."""
    if second.args_hash is None:
        return pk
    if first.args_hash != second.args_hash:
        raise IdTaken(second, first)
    return None
