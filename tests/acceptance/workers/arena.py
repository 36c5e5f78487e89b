"""The arena of the crash tests, with workers on every pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.acceptance.crash.arena import LEASE
from tests.acceptance.crash.arena import Arena as CrashArena
from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

__all__ = ["APP", "LEASE", "PATIENT", "Arena"]

APP = "tests.acceptance.workers.app"

#: Settings under which nothing goes on because a lease ran out: it would take minutes.
PATIENT = {"durable_lease_timeout": 300, "durable_recovery_interval": 0.2}


class Arena(CrashArena):
    """Knows who runs a body, and how long ago leases ran out."""

    app = APP
    namespace = "workers"

    def await_body(self, execution: str, times: int = 1) -> int:
        """Wait until a body has come to its long part for the ``times``-th time.

        :returns: the process that it runs in.
        """
        eventually(lambda: self.ledger.count("body", execution=execution) >= times, 60)
        bodies = self.ledger.entries("body", execution=execution)
        assert len(bodies) == times
        return int(bodies[-1]["pid"])

    def outlive_lease(self, execution: str) -> None:
        """Wait until a body has lived longer than a lease that nobody renews."""
        first = self.row(execution).lease_until
        eventually(lambda: self.row(execution).lease_until >= first + LEASE * 1000, 60)

    def outlast_leases(self, owner: WorkerProcess, execution: str = "last", **options: Any) -> WorkerProcess:
        """Wait until every lease that ``owner`` may have had has run out, and what recovery does about it is done.

        The worker begins one more execution, which holds it until the gate ``last`` opens, and is killed; its heir
        comes to that one last.

        :returns: the heir.
        """
        self.send(execution, "held", "last")
        self.await_body(execution)
        heir = self.worker(**options)
        owner.kill()
        self.await_body(execution, 2)
        return heir

    def revoke(self, execution: str, workers: Sequence[WorkerProcess], **options: Any) -> None:
        """Revoke an execution, and wait until these workers know."""
        names = [worker.hostname for worker in workers]

        def told() -> bool:
            # A worker of greenlets hears of it once that one of them listens; until then Redis forgets what it is told.
            answers = self.client.control.revoke(
                execution, destination=names, reply=True, limit=len(names), timeout=5, **options
            )
            return len(answers or ()) == len(names)

        eventually(told, 60)
