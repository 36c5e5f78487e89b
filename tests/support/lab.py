"""One process with one durable task, whose body the test writes anew for every attempt.

An attempt is an eager run of a fixed task id: eager runs are journaled like any other, and the same id resumes.
What stands for a killed worker is :class:`Crash`, raised wherever the test wants the process to die; real kills are
the business of the acceptance tests.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery, states

from celery_durable import DurableTask, execution_parked
from celery_durable.runtime import Runtime
from celery_durable.runtime.leases import Keeper
from celery_durable.store import Operations
from celery_durable.store.migrations import upgrade
from celery_durable.store.records import Doubt, EntryKind, Execution, Journaled, PayloadKind, State, StoredPayload
from celery_durable.store.rows import reason_text
from celery_durable.store.tables import executions, journal

from .ledger import Ledger

__all__ = ["Crash", "Lab", "Parked", "everywhere", "quiet_heartbeat", "readable"]

#: For tests that run on each database; the others have their journal in memory.
everywhere = pytest.mark.usefixtures("database")


class Crash(BaseException):
    """The process dies here."""


class Parked(Exception):
    """The attempt ended without an outcome; the text is the reason that was stored."""


class Lab:
    """An app with a journal, and a task named ``job``.

    :param ledger: the witness of what operations did.
    :param settings: of the app.
    """

    def __init__(self, ledger: Ledger, **settings: Any) -> None:
        self.ledger = ledger
        self.app = Celery("lab", set_as_current=False)
        self.app.conf.update({"durable_database_url": "sqlite://", "broker_url": "memory://", **settings})
        self.parked: list[tuple[str, str, str]] = []
        self._body: Callable[..., Any] = lambda context: None
        self.job = self.task("job", lambda task, *args, **kwargs: self._body(task.durable, *args, **kwargs))
        if not self.app.conf.durable_database_url.startswith("sqlite"):
            upgrade(self.runtime.database.engine)
        execution_parked.connect(self._on_parked, weak=False, dispatch_uid=id(self))

    def _on_parked(self, sender: Any, execution_id: str, state: str, reason: str, **_: Any) -> None:
        if getattr(sender, "app", None) is self.app:
            self.parked.append((execution_id, state, reason))

    def close(self) -> None:
        """Let go of the database, and end the threads that work for it."""
        execution_parked.disconnect(dispatch_uid=id(self))
        runtime = Runtime.known(self.app)
        if runtime is not None:
            runtime.end()

    def task(self, name: str, function: Callable[..., Any], **options: Any) -> Any:
        """Another durable task."""
        function.__name__ = name  # Celery writes a function's head in Python, which knows no <lambda>
        return self.app.task(function, **{"base": DurableTask, "bind": True, "name": name, "shared": False, **options})

    # -- attempts -------------------------------------------------------------------------------------------

    def run(self, body: Callable[..., Any], *args: Any, id: str = "one", **kwargs: Any) -> Any:  # noqa: A002
        """One attempt of ``body(context, ...)``.

        :raises Parked: when the execution is left without an outcome.
        """
        self._body = body
        return self.apply(self.job, *args, id=id, **kwargs)

    def apply(self, task: Any, *args: Any, id: str = "one", **kwargs: Any) -> Any:  # noqa: A002
        """One attempt of any task."""
        result = task.apply(args, kwargs, task_id=id)
        if result.state == states.IGNORED:
            raise Parked(self.reason(id))
        return result.get()

    def crash(self, body: Callable[..., Any], *args: Any, id: str = "one", **kwargs: Any) -> None:  # noqa: A002
        """An attempt in which the process dies."""
        with pytest.raises(Crash):
            self.run(body, *args, id=id, **kwargs)

    def parks(self, body: Callable[..., Any], *args: Any, id: str = "one", **kwargs: Any) -> str:  # noqa: A002
        """An attempt that leaves the execution to an operator; why."""
        with pytest.raises(Parked) as parked:
            self.run(body, *args, id=id, **kwargs)
        return readable(str(parked.value))

    def operation(self, name: str, value: Any = None, *errors: BaseException | None) -> Callable[..., Any]:
        """An operation that the ledger sees. Its calls raise ``errors`` in turn (None: none), then it gives ``value``.

        The effect happens before the error, as with an answer that got lost on its way.
        """
        left = list(errors)

        def operate(*args: Any, **kwargs: Any) -> Any:
            self.ledger.fire(name, args=list(args))
            error = left.pop(0) if left else None
            if error is not None:
                raise error
            return value

        operate.__name__ = name
        return operate

    # -- what the journal says ------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        return Runtime.of(self.app)

    @property
    def operations(self) -> Operations:
        return Operations(self.runtime.database, namespace=self.runtime.settings.namespace)

    def execution(self, id: str = "one") -> Execution:  # noqa: A002
        return self.operations.get(id)

    def state(self, id: str = "one") -> State:  # noqa: A002
        return self.execution(id).state

    def reason(self, id: str = "one") -> str:  # noqa: A002
        stored = self.operations.payload(self.execution(id).pk, PayloadKind.REASON)
        return "" if stored is None else reason_text(stored)

    def details(self, id: str = "one") -> str:  # noqa: A002
        """Why it was parked, with the values that nobody is shown unasked."""
        stored = self.operations.payload(self.execution(id).pk, PayloadKind.REASON)
        return "" if stored is None else reason_text(stored, reveal=True)

    def rows(self, id: str = "one", generation: int | None = None) -> list[Journaled]:  # noqa: A002
        """The journal of a generation; the present one by default."""
        execution = self.execution(id)
        return self.operations.entries(execution.pk, generation or execution.generation)

    def entries(self, id: str = "one", generation: int | None = None) -> list[str]:  # noqa: A002
        """The same in words: ``"0 RESULT name"``. Whose beginning a rerun shares is left out."""
        found = []
        for row in self.rows(id, generation):
            if row.kind == EntryKind.SHARED:
                continue
            place = f"{row.scope}/{row.position}" if row.scope else str(row.position)
            found.append(f"{place} {EntryKind(row.kind).name} {row.name}")
        return found

    def audits(self, id: str = "one", generation: int | None = None) -> list[dict[str, Any]]:  # noqa: A002
        """What the audit entries say."""
        return [
            self.runtime.codec.decode(row.codec, row.payload, "an audit")
            for row in self.rows(id, generation)
            if row.kind == EntryKind.AUDIT and row.codec is not None and row.payload is not None
        ]

    def sql(self, statement: sa.Executable) -> Any:
        """Change the tables by hand."""
        return self.runtime.database.write(lambda connection: connection.execute(statement).rowcount)

    def change_row(self, name: str, /, **values: Any) -> None:
        """Change what the journal has under a step's name."""
        assert self.sql(sa.update(journal).where(journal.c.name == name).values(**values))

    def lose_lease(self, id: str = "one") -> None:  # noqa: A002
        """As if its owner had been silent for too long."""
        self.sql(sa.update(executions).where(executions.c.id == id).values(lease_until=0))

    def wake(self) -> None:
        """As if the time of every execution that waits had come."""
        self.sql(sa.update(executions).where(executions.c.state == State.SUSPENDED.value).values(wake_at=1))

    # -- what an operator does ------------------------------------------------------------------------------

    def settle(self, place: str, kind: EntryKind, value: Any = None, id: str = "one") -> list[Doubt]:  # noqa: A002
        """Resolve a step: RESULT with a value, RUN_AGAIN, or ERROR with an exception."""
        codec = self.runtime.codec
        payload = None
        if kind is EntryKind.RESULT:
            payload = StoredPayload(*codec.encode(value, "a value"))
        elif kind is EntryKind.ERROR:
            payload = StoredPayload(*codec.encode_error(value, "an error"))
        note = StoredPayload(*codec.encode({"reason": "operator", "decision": kind.name}, "a note"))
        scope, _, position = place.rpartition("/")
        return self.operations.resolve(id, scope, int(position), kind, payload, note=note)


def quiet_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """No heartbeat: its threads would outlive the test, one for every app."""
    monkeypatch.setattr(Keeper, "tend", lambda self: None)


def readable(message: str) -> str:
    """A message with what differs from run to run in words: keys, and the source line's own text for its number."""

    def source(found: re.Match[str]) -> str:
        path = Path(__file__).parents[1].joinpath("integration", found[1])
        return f"{found[1]}: {linecache.getline(str(path), int(found[2])).strip()}"

    message = re.sub(r"\b[0-9a-f]{64}\b", "KEY", message)
    return re.sub(r"(\S+\.py):(\d+)", source, message)
