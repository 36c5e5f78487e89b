"""The arena of the crash tests, with a client that publishes as an application does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery

from celery_durable import DurableTask
from tests.acceptance.crash.arena import LEASE
from tests.acceptance.crash.arena import Arena as CrashArena
from tests.acceptance.outside import let_go
from tests.support.wait import eventually

__all__ = ["APP", "LEASE", "Arena"]

APP = "tests.acceptance.brokers.app"


class Arena(CrashArena):
    """Its :meth:`task` is a task of an application, which has the outbox; ``send`` only knows names."""

    app = APP
    namespace = "brokers"

    def publisher(self, **settings: Any) -> Celery:
        """An application that publishes: of the name of the worker's, with tasks of the same names."""
        app = Celery(self.namespace, set_as_current=False)
        lease = {"durable_lease_timeout": LEASE}
        app.conf.update(**{**self.broker.conf, **self.database.conf, **lease, **settings})
        for name in ("held", "add"):
            app.task(_elsewhere, base=DurableTask, name=f"{APP}.{name}", shared=False)
        self._publishers.append(app)
        return app

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._publishers: list[Celery] = []

    def close(self) -> None:
        for app in self._publishers:
            let_go(app)
        super().close()

    def await_bodies(self, executions: Sequence[str], times: int = 1) -> None:
        """Wait until these bodies have come to their long part."""
        eventually(lambda: all(self.ledger.count("body", execution=one) >= times for one in executions), 60)

    def expect_once(self, executions: Sequence[str], *steps: str) -> None:
        """Each execution has completed, and each of its effects happened once."""
        self.await_settled(executions)
        for one in executions:
            assert self.row(one).state == "completed"
            assert {step: self.ledger.count(step, execution=one) for step in steps} == dict.fromkeys(steps, 1)


def _elsewhere(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this process only publishes")
