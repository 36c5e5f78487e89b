"""What one process keeps for one app: settings, codec, store, writer, leases."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

from celery_durable.codec import Codec
from celery_durable.journal.writer import JournalWriter
from celery_durable.replay.limits import Limits
from celery_durable.settings import Settings, load
from celery_durable.store import (
    Database,
    Journal,
    Operations,
    OutboxStore,
    Ownership,
    Promises,
    RecoveryStore,
    django_place,
)
from celery_durable.store.pooler import Pooler
from celery_durable.store.transactions import Transactions
from celery_durable.waits.tokens import Tokens

from .accepting import of_outcomes
from .leases import Keeper, owner_prefix
from .lifeline import Lifeline, address_of
from .proxies import behind

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Runtime", "codec_of", "envelope_codec_of"]

logger = logging.getLogger(__name__)

#: Kombu's transports that mark a message which they deliver again. (All others either never do, or not always.)
_MARKING: Final = frozenset({"amqp", "redis"})
#: Those of which a message comes back when its worker dies: the memory of this process is lost with what it runs.
_TRUSTED: Final = _MARKING | {"memory"}

_runtimes: weakref.WeakKeyDictionary[Celery, Runtime] = weakref.WeakKeyDictionary()
_making = threading.Lock()
#: Numbers the openings of this process, whatever apps and runtimes it has.
_openings = itertools.count(1)


def codec_of(app: Celery, settings: Settings, limit: int) -> Codec:
    """The codec of an application.

    :param limit: largest payload, in bytes.
    """
    return Codec(
        settings.serializer,
        limit,
        accept=settings.accept_serializers,
        modules=settings.modules,
        outcomes=of_outcomes(app),
    )


def envelope_codec_of(app: Celery, settings: Settings) -> Codec:
    """The same for envelopes: they hold a task's arguments, which nobody limited before."""
    return codec_of(app, settings, 1 << 62)


class Runtime:
    """The durable side of an app in this process; made on first use, and again after a fork."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        self.codec = codec_of(app, settings, settings.max_payload_bytes)
        self.envelope_codec = envelope_codec_of(app, settings)
        self.limits = Limits(settings.max_steps, settings.lease_timeout, settings.previews)
        #: The alias whose test database holds the journal, in a test run of Django's.
        self.test_alias = django_place.alias_at(settings.database_url)
        self.database = self._new_database()
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
        self.writer = self._new_writer()
        # The heartbeat must not wait behind the bodies for a connection. An in-memory journal has but one.
        beat = self.database
        if not beat.in_memory:
            patience = min(settings.ack_timeout, settings.lease_timeout / 4)
            beat = beat.again(timeout=patience, pooled=False)
        self.keeper = Keeper(
            self.ownership_over(beat),
            lease_timeout=settings.lease_timeout,
            # In a pool process the parent is the worker. Anywhere else nobody listens there.
            lifeline=Lifeline(address_of(os.getppid()), owner_prefix()),
        )
        # A thread that nobody watches is missed when it is too late.
        self.keeper.companion = self.writer.timer.tend
        self.writer.timer.companion = self.keeper.tend
        self._app = weakref.ref(app)
        #: Runs that continued without durability (``durable_on_unavailable = "degrade"``).
        self.degraded_runs = 0

    @property
    def operations(self) -> Operations:
        """What operators do with the app's executions."""
        return Operations(self.database, namespace=self.settings.namespace)

    def _new_database(self) -> Database:
        settings = self.settings
        if self.test_alias is None:
            return Database(settings.database_url, timeout=settings.ack_timeout, pooler=Pooler(settings.pooler))
        from .django_testing import TestDatabase

        return TestDatabase(self.test_alias, settings.database_url, timeout=settings.ack_timeout)

    def _new_writer(self) -> JournalWriter:
        settings = self.settings
        kind = JournalWriter
        if self.test_alias is not None:
            from .django_testing import SteadyWriter

            kind = SteadyWriter
        return kind(self.journal, flush_interval=settings.flush_interval, ack_timeout=settings.ack_timeout)

    @functools.cached_property
    def trusts_broker(self) -> bool:
        """The broker says of a message whether it was delivered before, and delivers again what nobody acknowledged.

        Only who receives messages asks; a process that publishes makes no second connection for it.
        """
        return self._transport in _TRUSTED

    @functools.cached_property
    def marks_redelivery(self) -> bool:
        """The broker says of every message that it delivers again that it does."""
        return self._transport in _MARKING

    @functools.cached_property
    def _transport(self) -> str:
        app = self._app()
        if app is None:
            return ""
        connection = app.connection_for_read()
        if not (connection.transport_options or {}).get("ack_emulation", True):
            return ""  # Redis forgets a message when it hands it out
        return str(connection.transport.driver_type)

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
        app = behind(app)
        runtime = _runtimes.get(app)
        if django_place.under_test():
            cls._follow_tests(app, runtime)
            runtime = _runtimes.get(app)
        if runtime is None or runtime.pid != os.getpid():
            # Nothing is inherited through a fork: neither connections nor threads nor locks.
            with _making:
                runtime = _runtimes.get(app)
                if runtime is None or runtime.pid != os.getpid():
                    runtime = cls(app, load(app))
                    _runtimes[app] = runtime
        return runtime

    @staticmethod
    def _follow_tests(app: Celery, runtime: Runtime | None) -> None:
        """Forget a runtime whose journal is elsewhere by now: a test run makes its databases when it has begun."""
        if runtime is None or runtime.pid != os.getpid() or load(app).database_url == runtime.settings.database_url:
            return
        forgotten = Runtime.forget(app)
        if forgotten is not None:
            forgotten.end()

    @classmethod
    def known(cls, app: Celery) -> Runtime | None:
        """As :meth:`of`, but None where nothing durable has happened in this process."""
        app = behind(app)
        runtime = _runtimes.get(app)
        return runtime if runtime is not None and runtime.pid == os.getpid() else None

    @classmethod
    def forget(cls, app: Celery) -> Runtime | None:
        """Let the next use of an app make a new runtime.

        :returns: the one that this process has had.
        """
        with _making:
            runtime = cls.known(app)
            if runtime is not None:
                del _runtimes[app]
        return runtime

    def close(self) -> None:
        """Before the process ends: mark what was passed on to Celery, and close the connections."""
        try:
            self.keeper.close()
        except BaseException as error:
            logger.warning("results were not marked as dispatched; they may be returned once more: %s", error)
        self.database.dispose()
        self.transactions.dispose()

    def end(self) -> None:
        """For good: with what works in the background."""
        self.close()
        self.writer.timer.end()
        self.keeper.end()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    for runtime in list(_runtimes.values()):
        runtime.keeper.disown()


os.register_at_fork(after_in_child=_after_fork)
