"""Where databases go away: the arena of the crash tests, whose workers may reach the database over a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.acceptance.crash.arena import LEASE
from tests.acceptance.crash.arena import Arena as CrashArena
from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

__all__ = ["ACK", "APP", "LEASE", "SETTINGS", "Arena"]

APP = "tests.acceptance.outage.app"

#: ``durable_ack_timeout`` of the workers, in seconds.
ACK = 1.0
#: Durable settings of the workers; the leases are short.
SETTINGS = {
    "durable_lease_timeout": LEASE,
    "durable_ack_timeout": ACK,
    "durable_recovery_interval": 0.2,
    "durable_max_attempts": 100,
}


class Arena(CrashArena):
    """Counts what happened more often than it may."""

    app = APP
    namespace = "outage"

    def start(self, *, via: str | None = None, durable: dict[str, Any] | None = None, **options: Any) -> WorkerProcess:
        """A worker.

        :param via: the URL under which it finds the database.
        :param durable: durable settings beyond the usual ones.
        """
        route = {} if via is None else {"durable_database_url": via}
        return self.worker(durable={**SETTINGS, **route, **(durable or {})}, **options)

    def send_chains(self, count: int, length: int) -> list[str]:
        """Publish that many ``chain`` tasks."""
        names = [f"chain-{number}" for number in range(count)]
        for name in names:
            self.send(name, "chain", length)
        return names

    def await_fired(self, count: int, prefix: str = "pay") -> None:
        """Wait until that many effects of steps with such a name have happened."""
        eventually(lambda: sum(name.startswith(prefix) for name in self.ledger.names()) >= count, 60)

    def await_said(self, worker: WorkerProcess, text: str, times: int = 1) -> None:
        """Wait until the worker's log says something for the ``times``-th time."""
        eventually(lambda: worker.log().count(text) >= times, 60, f"{worker!r} did not say {text!r}")

    def check_chains(self, names: Iterable[str], length: int) -> None:
        """All have ended, every guarded effect happened once, and nothing that was committed happened again."""
        for name in names:
            expected = [f"{kind} {number}" for number in range(length) for kind in ("plain", "pay")]
            assert self.result(name).get(timeout=60) == expected
            row = self.row(name)
            assert (row.state, row.generation, row.steps, row.retries) == ("completed", 1, 2 * length, 0)
            happened = [entry["name"] for entry in self.ledger.entries(execution=name)]
            paid = [effect for effect in happened if effect.startswith("pay")]
            assert paid == expected[1::2], name
            # Once a payment has happened, the plain step before it is committed.
            for number, payment in enumerate(paid):
                assert f"plain {number}" not in happened[happened.index(payment) :], name
