"""Looks at the journal, the ledgers and the shop, in a thread of its own so that the kills stay on time."""

from __future__ import annotations

import json
import time
import urllib.request

from ..shop import Shop
from .audit import Books
from .display import Snapshot
from .journal import Execution, Journal
from .stage import SERVICES
from .watch import Watch


def read_books(url: str) -> Books:
    """A service's ledger."""
    with urllib.request.urlopen(f"{url}/ledger", timeout=10) as reply:
        found = json.load(reply)
    return Books(found["entries"], found["requests"])


class Observer(Watch):
    """Keeps a snapshot fresh until it is stopped."""

    #: Seconds between two looks at the ledgers.
    INTERVAL = 0.3
    #: Seconds between two looks at the journal, each of which starts a process.
    JOURNAL_INTERVAL = 3.0

    def __init__(self, shop: Shop, journal: Journal, urls: dict[str, str], ids: dict[int, str], orders: int) -> None:
        super().__init__("observer")
        self.snapshot = Snapshot(orders)
        self.executions: dict[str, Execution] = {}
        self._shop, self._journal, self._urls, self._ids = shop, journal, urls, ids
        self._journal_read = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether every order is in a state that is final, or that waits for an operator."""
        known = [self.executions.get(id_) for id_ in list(self._ids.values())]
        return len(known) == self.snapshot.orders and all(execution and execution.final for execution in known)

    def _look(self) -> None:
        gateway, carrier, mailer, desk = (read_books(self._urls[f"{name.upper()}_URL"]) for name in SERVICES)
        refused, refunds = desk.count(kind="approval", answer="no"), gateway.count(entry="refund")
        invoiced = len(self._shop.invoiced())
        # The end of the last order is a good moment to ask the journal whether all are through.
        complete = invoiced + refused + refunds >= self.snapshot.orders
        if complete or time.monotonic() - self._journal_read > self.JOURNAL_INTERVAL:
            self.executions = self._journal.executions()
            self._journal_read = time.monotonic()
        self.snapshot = Snapshot(
            orders=self.snapshot.orders,
            submitted=len(self._ids),
            invoiced=invoiced,
            refused=refused,
            refunds=refunds,
            charges=gateway.count(entry="charge"),
            parcels=len(carrier.entries),
            mails=len(mailer.entries),
            questions=desk.count(answer=None),
        )
