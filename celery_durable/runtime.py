"""What one process keeps for one app: settings, codec, store, writer, leases."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

from .codec import Codec
from .lease import Keeper, owner_prefix
from .run import Limits
from .settings import Settings, load
from .store import Database, Journal, OutboxStore, Ownership, Promises, RecoveryStore
from .store.transactions import Transactions
from .tokens import Tokens
from .worker.control import Lifeline, address_of
from .writer import JournalWriter

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Returning", "Runtime"]

logger = logging.getLogger(__name__)

#: Kombu's transports that mark a redelivery. (The memory of this process is lost together with what it runs.)
_TRUSTED: Final = frozenset({"amqp", "redis", "memory"})

_runtimes: weakref.WeakKeyDictionary[Celery, Runtime] = weakref.WeakKeyDictionary()
_making = threading.Lock()
#: Numbers the openings of this process, whatever apps and runtimes it has.
_openings = itertools.count(1)


class Returning(NamedTuple):
    """An outcome on its way to Celery."""

    pk: int
    #: Handing it on a second time would send callbacks twice.
    has_callbacks: bool


class Runtime:
    """The durable side of an app in this process; made on first use, and anew after a fork."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        self.codec = Codec(settings.serializer, settings.max_payload_bytes)
        #: Envelopes hold a task's arguments, which nobody limited before.
        self.envelope_codec = Codec(settings.serializer, 1 << 62)
        self.limits = Limits(settings.max_steps, settings.lease_timeout)
        self.database = Database(settings.database_url, timeout=settings.ack_timeout)
        self.journal = Journal(self.database, lease_ms=settings.lease_ms)
        self.ownership = self.ownership_over(self.database)
        self.transactions = Transactions(self.database, self.journal, timeout=settings.transaction_timeout)
        self.recovery = RecoveryStore(
            self.database,
            namespace=settings.namespace,
            lease_ms=settings.lease_ms,
            max_attempts=settings.max_attempts,
        )
        self.outbox = OutboxStore(self.database, namespace=settings.namespace, lease_ms=settings.lease_ms)
        self.promises = Promises(self.database)
        self.tokens = Tokens(settings.secret)
        self.writer = JournalWriter(
            self.journal, flush_interval=settings.flush_interval, ack_timeout=settings.ack_timeout
        )
        # The heartbeat must not wait behind the bodies for a connection. An in-memory journal has but one.
        beat = self.database
        if not beat.in_memory:
            patience = min(settings.ack_timeout, settings.lease_timeout / 4)
            beat = Database(settings.database_url, timeout=patience, pooled=False)
        self.keeper = Keeper(
            self.ownership_over(beat),
            lease_timeout=settings.lease_timeout,
            # In a pool process the parent is the worker. Anywhere else nobody listens there.
            lifeline=Lifeline(address_of(os.getppid()), owner_prefix()),
        )
        self._app = weakref.ref(app)
        #: task id -> outcome that is on its way to Celery.
        self.returning: dict[str, Returning] = {}
        #: Runs that went on without durability (``durable_on_unavailable = "degrade"``).
        self.degraded_runs = 0

    @functools.cached_property
    def trusts_broker(self) -> bool:
        """The broker says of a message whether it was delivered before, and delivers again what nobody acknowledged.

        Only who receives messages asks; a process that publishes makes no second connection for it.
        """
        app = self._app()
        return app is not None and app.connection_for_read().transport.driver_type in _TRUSTED

    def ownership_over(self, database: Database) -> Ownership:
        settings = self.settings
        return Ownership(
            database,
            namespace=settings.namespace,
            lease_ms=settings.lease_ms,
            max_attempts=settings.max_attempts,
        )

    def new_owner(self) -> str:
        """A fresh owner id: unique for this opening among all processes."""
        return f"{owner_prefix()}{next(_openings)}"

    @classmethod
    def of(cls, app: Celery) -> Runtime:
        """This process's runtime of ``app``.

        :raises ConfigurationError: when a ``durable_*`` setting is wrong.
        """
        app = app._get_current_object() if hasattr(app, "_get_current_object") else app
        runtime = _runtimes.get(app)
        if runtime is None or runtime.pid != os.getpid():
            # Nothing is inherited through a fork: neither connections nor threads nor locks.
            with _making:
                runtime = _runtimes.get(app)
                if runtime is None or runtime.pid != os.getpid():
                    runtime = cls(app, load(app))
                    _runtimes[app] = runtime
        return runtime

    @classmethod
    def known(cls, app: Celery) -> Runtime | None:
        """As :meth:`of`, but None where nothing durable has happened in this process."""
        app = app._get_current_object() if hasattr(app, "_get_current_object") else app
        runtime = _runtimes.get(app)
        return runtime if runtime is not None and runtime.pid == os.getpid() else None

    def close(self) -> None:
        """Before the process ends: mark what Celery was told, and close the connections."""
        try:
            self.keeper.close()
        except BaseException as error:
            logger.warning("results were not marked as dispatched; they may be returned once more: %s", error)
        self.database.dispose()
        self.transactions.dispose()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
