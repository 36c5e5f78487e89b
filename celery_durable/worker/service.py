"""Recovery: sends the messages of executions whose lease ran out, that are due to continue, that never started, or
whose outcome was not passed on to Celery.

It runs separately from the bodies: in a process of its own under prefork, in a native thread in the other pools, or
alone as ``celery durable service``. Any number may run; they share the work by skip-locked claims.
"""

from __future__ import annotations

import json
import logging
import math
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celery_durable.common.faults import reached
from celery_durable.common.threads import Tended
from celery_durable.errors import DurableError
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.sending import broker_errors
from celery_durable.retention.rules import Rules
from celery_durable.retention.upkeep import Upkeep
from celery_durable.runtime import Runtime
from celery_durable.runtime.lifeline import attend, peer_is_us
from celery_durable.signals import announce_parked
from celery_durable.store import OutboxStore, RecoveryStore, RetentionStore
from celery_durable.store.outbox import DueMessage
from celery_durable.store.records import State
from celery_durable.store.recovery import DueExecution

from .handlers import handle

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Service"]

logger = logging.getLogger(__name__)

#: Executions claimed in one transaction.
_BATCH: Final = 100
#: Pause after a failure, in seconds; doubled up to the limit.
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
#: How often a service in a thread checks whether it is to stop, in seconds.
_GLANCE: Final = 0.05
#: Bytes of a line that another process may send.
_LONGEST_LINE: Final = 1 << 22
#: How often retention checks whether there is anything to do, in rounds of recovery.
_UPKEEP_EVERY: Final = 10


class Service:
    """One recovery service.

    :param server: listens for the processes of the worker; None if bodies run in this process.
    :param orphaned: tells whether the worker of this service has gone.
    """

    def __init__(
        self,
        app: Celery,
        server: socket.socket | None = None,
        orphaned: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app = app
        self.runtime = Runtime.of(app)
        self.settings = self.runtime.settings
        self._stopping = False
        #: True once :meth:`run` has returned: everything that was claimed has been handled.
        self.ended = False
        self._orphaned = orphaned
        self._server = server
        #: connection -> (bytes read so far, owner prefix once it said hello)
        self._peers: dict[socket.socket, tuple[bytes, str]] = {}
        database = self.runtime.database
        if not database.in_memory:
            # Its own connection: it never waits for a body to release one, and is used in its own thread only.
            database = database.again(timeout=self.settings.ack_timeout, pooled=False)
        self.recovery = RecoveryStore(
            database,
            namespace=self.settings.namespace,
            lease_ms=self.settings.lease_ms,
            max_attempts=self.settings.max_attempts,
        )
        self.outbox = OutboxStore(database, namespace=self.settings.namespace, lease_ms=self.settings.lease_ms)
        #: None if nothing is pruned automatically.
        self._upkeep = self._new_upkeep()
        #: In a thread of its own: no claim ever waits for it.
        self._retention = None if self._upkeep is None else Tended(self._upkeep.run, "durable-retention", native=True)
        self._connection: Any = None
        self._producer: Any = None
        #: When the present claim was first tried (``time.monotonic()``); None if the last one succeeded.
        self._trying_since: float | None = None
        self._sparing_until = 0.0
        #: When there will be something to do, as far as was reported (``time.monotonic()``).
        self._look_by = math.inf
        if server is None:
            attend(self)

    def _new_upkeep(self) -> Upkeep | None:
        rules, settings, database = Rules.of(self.settings), self.settings, self.runtime.database
        if not rules.active:
            return None
        rest: Callable[[], None] = lambda: None  # noqa: E731
        if not database.in_memory:
            # One connection for all the small transactions of a turn, and none between the turns.
            database = database.again(timeout=settings.ack_timeout)
            rest = database.dispose
        return Upkeep(
            RetentionStore(database, namespace=settings.namespace),
            rules,
            self.runtime.new_owner(),
            rhythm=_UPKEEP_EVERY * settings.recovery_interval,
            rest=rest,
        )

    def look_within(self, seconds: float) -> None:
        """Look for due executions in this many seconds at the latest."""
        self._look_by = min(self._look_by, time.monotonic() + seconds)

    def stop(self) -> None:
        """Leave :meth:`run` soon."""
        self._stopping = True

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Recover until :meth:`stop`."""
        pause = _FIRST_PAUSE
        while not self._stopping and not self._orphaned():
            if self._retention is not None:
                self._retention.ensure()
            try:
                wait = self.round()
                pause = _FIRST_PAUSE
            except Exception as error:
                # Whatever the error is, the next round may succeed; nothing else would recover these executions.
                expected = isinstance(error, DurableError)
                logger.warning("recovery failed, and is tried again: %s", error, exc_info=not expected)
                self._disconnect()
                wait = pause
                pause = min(pause * 2, _LONGEST_PAUSE)
            self._wait(wait, sleep)
        if self._upkeep is not None and self._retention is not None:
            self._retention.end()
            self._upkeep.stop()
        self._disconnect()
        self.ended = True

    def round(self) -> float:
        """Claim and send once.

        :returns: seconds until the next round is due.
        """
        # Anything reported from here on may come too late for this claim.
        self._look_by = math.inf
        if self._trying_since is None:
            self._trying_since = time.monotonic()
        claims = self.recovery.claim(_BATCH, spare_owners=self._spares_owners)
        self._trying_since = None
        for execution_id in [one.id for one in claims.parked] + [one.id for one in claims.due]:
            reached("recovery.after_claim", execution_id)
        for parked in claims.parked:
            self._show_parked(parked.id, parked.reason)
            announce_parked(parked.task, parked.id, State.QUARANTINED, parked.reason)
        unsent = self.outbox.claim(_BATCH) if claims.outbox_ms is not None and claims.outbox_ms <= 0 else []
        self._send_all([*claims.due, *unsent])
        if max(len(claims.due) + len(claims.parked), len(unsent)) >= _BATCH:
            return 0.0
        waits = [ms for ms in (claims.next_ms, None if unsent else claims.outbox_ms) if ms is not None]
        interval = self.settings.recovery_interval
        return min([interval, *(max(ms / 1000, 0.01) for ms in waits)])

    def _spares_owners(self) -> bool:
        """Whether leases that have run out are left alone: while the journal was out of reach nobody could renew
        a lease, so live owners get time to do it.
        """
        now, lease = time.monotonic(), self.settings.lease_timeout
        if self._trying_since is not None and now - self._trying_since > lease / 3:
            self._sparing_until = now + lease
        return now < self._sparing_until

    def _send_all(self, claimed: list[DueExecution | DueMessage]) -> None:
        """Send what was claimed, in the order in which it was recorded."""
        left = sorted(claimed, key=lambda one: one.pk)
        sent: list[int] = []
        try:
            while left:
                done = self._try_to_send(left[0])
                one = left.pop(0)
                if done and isinstance(one, DueMessage):
                    sent.append(one.pk)
        except Exception:
            # The broker is out of reach: give back the claims that are left.
            pause = int(self.settings.recovery_interval * 1000)
            self.recovery.unsent([one.pk for one in left if isinstance(one, DueExecution)], pause)
            self.outbox.unsent([one.pk for one in left if isinstance(one, DueMessage)], pause)
            raise
        finally:
            self.outbox.sent(sent)

    def _try_to_send(self, due: DueExecution | DueMessage) -> bool:
        """False for a message that cannot be sent, and must not keep others from being sent.

        :raises: what the broker's connection raised.
        """
        try:
            self._send(due)
        except broker_errors(self.app):
            raise
        except Exception:
            logger.exception("%s[%s] could not be sent; it is tried again later", due.task, due.id)
            return False
        return True

    def _send(self, due: DueExecution | DueMessage) -> None:
        if due.envelope is None:
            logger.error("%s[%s] is due but its message was not stored; it cannot be sent again", due.task, due.id)
            return
        message = envelopes.unpack(due.envelope, self.runtime.envelope_codec)
        if isinstance(due, DueMessage):
            reached("outbox.after_claim", due.id)
            envelopes.resend(self.app, message, None, producer=self._ready(), started=False)
            reached("outbox.after_send", due.id)
            logger.info("%s[%s] is sent from the outbox", due.task, due.id)
            return
        envelopes.resend(self.app, message, due.pk, producer=self._ready(), started=due.epoch > 0)
        level = logging.INFO if due.sends == 0 else logging.DEBUG
        logger.log(level, "%s[%s] (%s) is sent again", due.task, due.id, due.state)

    def _ready(self) -> Any:
        """A producer over a connection of this service's own."""
        if self._producer is None:
            self._connection = self.app.connection_for_write()
            self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)
        return self._producer

    def _disconnect(self) -> None:
        if self._connection is not None:
            try:
                self._connection.release()
            except Exception as error:
                logger.debug("closing the broker connection failed: %s", error)
        self._connection = self._producer = None

    def _show_parked(self, execution_id: str, reason: str) -> None:
        try:
            self.app.backend.store_result(execution_id, {"reason": reason}, State.QUARANTINED.value.upper())
        except Exception as error:
            logger.warning("the result backend could not be notified that %s is quarantined: %s", execution_id, error)

    # -- the worker's other processes -----------------------------------------------------------------------

    def _wait(self, seconds: float, sleep: Callable[[float], None]) -> None:
        """Wait, and meanwhile read the messages of the worker's other processes."""
        deadline = time.monotonic() + seconds
        if self._server is None:
            while not self._stopping and (left := min(deadline, self._look_by) - time.monotonic()) > 0:
                sleep(min(left, _GLANCE))
            return
        while not self._stopping:
            left = max(min(deadline, self._look_by) - time.monotonic(), 0)
            readable, _, _ = select.select([self._server, *self._peers], [], [], left)
            urgent = False
            for connection in readable:
                if connection is self._server:
                    self._accept()
                else:
                    urgent |= self._hear(connection)
            if urgent or not readable:
                return

    def _accept(self) -> None:
        assert self._server is not None
        connection, _ = self._server.accept()
        if peer_is_us(connection):
            connection.setblocking(False)
            self._peers[connection] = (b"", "")
        else:
            connection.close()

    def _hear(self, connection: socket.socket) -> bool:
        """Read from a peer.

        :returns: True when there is something to recover now.
        """
        buffered, owner = self._peers[connection]
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            del self._peers[connection]
            connection.close()
            return bool(owner) and self._forsake(owner)
        *lines, rest = (buffered + data).split(b"\n")
        self._peers[connection] = (rest, owner)
        try:
            if len(rest) > _LONGEST_LINE:
                raise ValueError("it does not end")
            for line in lines:
                self._obey(connection, rest, json.loads(line))
        # The peer is a foreign process, or of another version: nothing that it sends may end the service.
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            logger.warning(
                "a process sent a request that this service does not understand: %s: %s", type(error).__name__, error
            )
            self._peers.pop(connection, None)
            connection.close()
        return False

    def _obey(self, connection: socket.socket, rest: bytes, message: dict[str, Any]) -> None:
        if message["op"] == "hello":
            self._peers[connection] = (rest, str(message["owner"]))
        elif message["op"] == "bye":
            self._peers[connection] = (rest, "")
        elif message["op"] == "due":
            self.look_within(float(message["in"]))
        else:
            self._answer(connection, message)

    def _forsake(self, owner: str) -> bool:
        """A pool process died: its executions continue at once."""
        try:
            count = self.recovery.forsake(owner)
        except DurableError as error:
            logger.warning("the leases of a dead process could not be released, and must expire: %s", error)
            return False
        if count:
            logger.warning("a pool process died; its %d execution(s) continue in other processes", count)
        return count > 0

    def _answer(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            handle(self.app, message)
            answer = {"ok": True}
        except Exception as error:
            logger.warning("%s failed: %s", message.get("op"), error)
            answer = {"ok": False}
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            logger.debug("nobody waits for the answer any more: %s", error)
