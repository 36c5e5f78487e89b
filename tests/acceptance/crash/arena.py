"""Where crash tests take place: real workers on a real database and broker, faults armed from outside, and a ledger."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.result import AsyncResult

from celery_durable.codec import Codec
from celery_durable.common.faults import DIRECTORY_VARIABLE
from celery_durable.store import Database, Operations, migrations
from celery_durable.store.records import (
    FINAL_STATES,
    PARKED_STATES,
    EntryKind,
    Execution,
    Journaled,
    PayloadKind,
    State,
    StoredPayload,
)
from celery_durable.store.rows import reason_text
from celery_durable.store.tables import executions
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.gates import GATES
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory, WorkerProcess

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

    def settle(self, row: Execution) -> int:
        """What an operator does with steps in doubt: asks the witness, and says what it knows.

        :returns: how many were settled.
        """
        codec = Codec()
        last = {(e.scope, e.position): e for e in self.operations.entries(row.pk, row.generation)}
        doubtful = [e for e in last.values() if e.kind == EntryKind.AUDIT]
        for entry in doubtful:
            assert entry.key is not None
            told = self.ledger.entries(key=entry.key.hex())
            kind = EntryKind.RESULT if told else EntryKind.RUN_AGAIN
            payload = StoredPayload(*codec.encode(self.told(told[0]))) if told else None
            note = StoredPayload(*codec.encode("the test looked at the ledger"))
            self.operations.resolve(row.id, entry.scope, entry.position, kind, payload, note=note)
        return len(doubtful)

    @staticmethod
    def told(entry: dict[str, Any]) -> Any:
        """What the remote side says of something that has happened."""
        return None if entry["name"].startswith("undo ") else "live"

    # -- looking ---------------------------------------------------------------------------------------------

    def result(self, execution: str) -> AsyncResult[Any]:
        return self.client.AsyncResult(execution)

    def row(self, execution: str) -> Execution:
        return self.operations.get(execution)

    def reason(self, row: Execution) -> str:
        """Why it is parked."""
        stored = self.operations.payload(row.pk, PayloadKind.REASON)
        return "" if stored is None else reason_text(stored)

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

    def open_ones(self) -> dict[str, str]:
        """Executions that have something left to do, or of which Celery was not told; and their states.

        The others are not read: a long soak asks again and again.
        """
        x = executions.c
        settled = [state.value for state in FINAL_STATES | PARKED_STATES]
        query = sa.select(x.id, x.state).where(x.state.not_in(settled) | x.wake_at.is_not(None))
        found = self._store.read(lambda connection: connection.execute(self._own(query)).all())
        return {row.id: str(State(row.state)) for row in found}

    def settled(self) -> int:
        """How many executions have ended, or are parked."""
        settled = [state.value for state in FINAL_STATES | PARKED_STATES]
        return self._count(executions.c.state.in_(settled))

    def _known(self, wanted: Collection[str]) -> int:
        """How many of these have a row."""
        return self._count(executions.c.id.in_(list(wanted)))

    def _count(self, which: sa.ColumnElement[bool]) -> int:
        query = self._own(sa.select(sa.func.count()).select_from(executions).where(which))
        return self._store.read(lambda connection: connection.execute(query).scalar_one())

    def _own(self, query: sa.Select[Any]) -> sa.Select[Any]:
        return query.where(executions.c.namespace == self.namespace)

    def await_settled(self, executions: Sequence[str], timeout: float = 120.0) -> None:
        """Wait until nobody has anything left to do: all have ended or are parked, and Celery was told."""
        wanted = set(executions)

        def all_settled() -> bool:
            # First who is there: between two looks one may come, and would be missed as long as it is open.
            known = self._known(wanted)
            open_ones.clear()
            open_ones.update({one: state for one, state in self.open_ones().items() if one in wanted})
            return not open_ones and known == len(wanted)

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
