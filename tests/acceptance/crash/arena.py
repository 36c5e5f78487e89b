"""Where crash tests take place: real workers on a real database and broker, faults armed from outside, and a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.result import AsyncResult

from celery_durable.codec import Codec
from celery_durable.faults import DIRECTORY_VARIABLE
from celery_durable.store import Database, Operations, migrations
from celery_durable.store.records import FINAL_STATES, PARKED_STATES, EntryKind, Execution, Journaled
from celery_durable.store.tables import executions
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory, WorkerProcess

from .app import GATES

__all__ = ["APP", "LEASE", "Arena"]

APP = "tests.acceptance.crash.app"

#: ``durable_lease_timeout`` of the workers, in seconds.
LEASE = 2.0


class Arena:
    """One database, one broker, and any number of workers on them.

    :param folder: for the files that arm faults and open gates.
    """

    #: The module of the application under test, and the application's name.
    app = APP
    namespace = "crash"

    def __init__(
        self, database: JournalDatabase, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, folder: Path
    ) -> None:
        self.database = database
        self.broker = broker
        self.ledger = ledger
        self._workers = workers
        self._faults = folder / "faults"
        self._gates = folder / "gates"
        self._faults.mkdir()
        self._gates.mkdir()
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(broker.conf)
        migrations.upgrade(database.url)
        self._store = Database(database.url, timeout=30)
        self.operations = Operations(self._store, namespace=self.namespace)

    def close(self) -> None:
        self.client.close()
        self._store.dispose()

    # -- acting ----------------------------------------------------------------------------------------------

    def worker(
        self,
        *,
        conf: dict[str, Any] | None = None,
        durable: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> WorkerProcess:
        """A worker that takes one message per pool process, and whose leases are short.

        :param durable: the durable settings, in the place of the usual ones.
        """
        usual = {"durable_lease_timeout": LEASE, "durable_recovery_interval": 0.2, "durable_max_attempts": 100}
        env = {**self.ledger.env, DIRECTORY_VARIABLE: str(self._faults), GATES: str(self._gates), **(env or {})}
        settings = [self.broker.conf, self.database.conf, usual if durable is None else durable]
        prefetch = {"worker_prefetch_multiplier": 1}
        return self._workers(self.app, *settings, conf={**prefetch, **(conf or {})}, env=env, **options)

    def arm(self, execution: str, point: str, *, action: str = "kill", nth: int = 1, step: str = "") -> None:
        """Let ``action`` happen when the execution is at ``point`` for the ``nth`` time; counted from the last action
        that was armed for this point, if there was one.
        """
        with (self._faults / "@".join(filter(None, (point, execution, step)))).open("a") as file:
            file.write(f"{action} {nth}\n")

    def unreached(self, execution: str = "") -> list[str]:
        """The faults that were armed and never reached."""
        return sorted(file.name for file in self._faults.iterdir() if f"@{execution}" in file.name)

    def lapse(self, execution: str) -> None:
        """Let the lease run out at once."""
        change = sa.update(executions).where(executions.c.id == execution).values(lease_until=1, wake_at=1)
        assert self._store.write(lambda connection: connection.execute(change).rowcount) == 1

    def open_gate(self, name: str) -> None:
        (self._gates / name).touch()

    def send(self, execution: str, task: str, *args: Any) -> None:
        """Publish a task of the application under test, as this execution."""
        self.client.send_task(f"{self.app}.{task}", args, task_id=execution)

    # -- looking ---------------------------------------------------------------------------------------------

    def result(self, execution: str) -> AsyncResult[Any]:
        return self.client.AsyncResult(execution)

    def row(self, execution: str) -> Execution:
        return self.operations.get(execution)

    def fired(self, execution: str, step: str) -> list[dict[str, Any]]:
        """How often, and in which processes, the effect of a step happened."""
        return self.ledger.entries(step, execution=execution)

    def journal(self, execution: str) -> list[Journaled]:
        """What the execution has journaled."""
        row = self.row(execution)
        return self.operations.entries(row.pk, row.generation)

    def decisions(self, execution: str) -> list[str]:
        """What was decided where knowledge was lost, by the audit entries in the journal."""
        codec = Codec()
        audits = [entry for entry in self.journal(execution) if entry.kind == EntryKind.AUDIT]
        return [codec.decode(e.codec or 0, e.payload or b"", "an audit")["decision"] for e in audits]

    def await_started(self, executions: Sequence[str], timeout: float = 150.0) -> None:
        wanted = set(executions)
        eventually(lambda: wanted <= {r.id for r in self.operations.find(limit=5000)}, timeout, "not all started")

    def await_settled(self, executions: Sequence[str], timeout: float = 120.0) -> None:
        """Wait until nobody has anything left to do: all have ended or are parked, and Celery was told."""
        wanted = set(executions)
        settled = FINAL_STATES | PARKED_STATES

        def all_settled() -> bool:
            rows = [row for row in self.operations.find(limit=5000, pruned=None) if row.id in wanted]
            open_ones.clear()
            open_ones.update({r.id: str(r.state) for r in rows if r.state not in settled or r.wake_at is not None})
            return len(rows) == len(wanted) and not open_ones

        open_ones: dict[str, str] = {}
        try:
            eventually(all_settled, timeout, interval=0.1)
        except AssertionError:
            raise AssertionError(f"not settled within {timeout:g} s: {open_ones}") from None

    def await_empty_broker(self, timeout: float = 60.0) -> None:
        """Wait until no message waits, and none is unacknowledged (Redis only)."""

        def empty() -> bool:
            with self.broker.connect() as connection:
                redis = connection.default_channel.client
                return redis.llen(self.broker.queue) == 0 and redis.hlen("unacked") == 0

        eventually(empty, timeout, "messages are left in the broker", interval=0.1)
