"""Where sagas are hurt; and what an operator and the outside witness say of them afterwards."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from celery import Celery

from celery_durable import DurableTask

from ..crash.arena import Arena as CrashArena
from .app import written

__all__ = ["Arena"]


def _elsewhere(self: DurableTask, statements: list[Any]) -> None:
    raise AssertionError("the sender runs no tasks")


class Arena(CrashArena):
    app = "tests.acceptance.sagas.app"
    namespace = "sagas"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: An application as the web view of a shop has it.
        self.outside = Celery("sagas", set_as_current=False)
        self.outside.conf.update({**self.broker.conf, **self.database.conf})
        # What a killed worker had reserved would else come back after Redis' visibility timeout: an hour.
        self.outside.conf.durable_outbox = True
        for name in ("saga", "saga_async"):
            self.outside.task(base=DurableTask, bind=True, name=f"{self.app}.{name}")(_elsewhere)
        written.metadata.create_all(self.database.engine())

    def send(self, execution: str, task: str, *args: Any) -> None:
        self.outside.tasks[f"{self.app}.{task}"].apply_async(args, task_id=execution)

    def close(self) -> None:
        self.outside.close()
        super().close()

    def done(self) -> dict[str, dict[str, set[str]]]:
        """Execution → what it has done → the keys under which it did."""
        found = self._told("did")
        with self.database.engine().connect() as connection:
            for execution, what in connection.execute(sa.select(written.c.execution, written.c.what)):
                found.setdefault(execution, {}).setdefault(what, set()).add("in the database")
        return found

    def undone(self) -> dict[str, dict[str, set[str]]]:
        """Execution → what it has undone → the keys under which it did."""
        return self._told("undid")

    def _told(self, name: str) -> dict[str, dict[str, set[str]]]:
        found: dict[str, dict[str, set[str]]] = {}
        for entry in self.ledger.entries(name):
            found.setdefault(entry["execution"], {}).setdefault(entry["what"], set()).add(entry["key"])
        return found

    def warned_of(self, execution: str) -> str:
        """What the workers have said of what an execution, which completed, has done and does not ask for."""
        lines = [line for worker in self._workers.started for line in worker.log().splitlines()]
        return "\n".join(line for line in lines if f"[{execution}] completes, and its body, which changed" in line)

    @staticmethod
    def told(entry: dict[str, Any]) -> Any:
        return None if entry["name"] == "undid" else entry["what"]
