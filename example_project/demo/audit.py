"""Compares everybody's books and says, in plain words, whether an order was lost or paid twice.

Pure: what goes in was read before, what comes out is shown later.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from ..shop import Order
from .chaos import Kill
from .journal import Execution, StepRow
from .replays import Replays

#: The step that may be skipped when nobody knows whether the mail went out.
MAIL_STEP = "send_confirmation"


@dataclass(frozen=True)
class Books:
    """What one service says: its ledger, and how it answered its requests."""

    entries: list[dict[str, Any]]
    requests: dict[str, int]

    def of(self, order: Order) -> list[dict[str, Any]]:
        """The entries of an order."""
        return [entry for entry in self.entries if entry["reference"] == order.reference]


@dataclass(frozen=True)
class Evidence:
    """All that was found after the last order."""

    orders: list[Order]
    #: Execution id of each order.
    ids: dict[int, str]
    executions: dict[str, Execution]
    steps: dict[str, list[StepRow]]
    gateway: Books
    carrier: Books
    mailer: Books
    #: Orders that have an invoice.
    invoiced: set[int]
    #: Pieces that left the stock, and pieces that are reserved, by article.
    taken: dict[str, int]
    reserved: dict[str, int]
    #: What was answered from the journal instead of being run again.
    replayed: Replays
    kills: list[Kill] = field(default_factory=list)
    #: Seconds from a kill until the interrupted execution was run again, by kind of kill.
    waits: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class OrderReport:
    """What happened to one order."""

    reference: str
    execution: str
    state: str
    #: How often it was run, from ``durable list``.
    attempts: int
    charges: int
    charged_cents: int
    parcels: int
    mails: int
    #: Steps whose outcome was assumed because nobody knew.
    skipped: list[str]
    #: How many kills hit it in the middle.
    kills: int
    problems: list[str]


def examine(evidence: Evidence) -> list[OrderReport]:
    """Judge every order."""
    hits = Counter(id_ for kill in evidence.kills for id_ in kill.interrupted)
    return [_examine(order, evidence, hits[evidence.ids.get(order.id, "")]) for order in evidence.orders]


def _examine(order: Order, evidence: Evidence, kills: int) -> OrderReport:
    id_ = evidence.ids.get(order.id, "")
    execution = evidence.executions.get(id_)
    state = execution.state if execution else "unknown to the journal"
    charges, parcels, mails = (books.of(order) for books in (evidence.gateway, evidence.carrier, evidence.mailer))
    charged = sum(entry["amount_cents"] for entry in charges)
    skipped = [row.name for row in evidence.steps.get(id_, []) if row.outcome == "skipped"]
    problems = []
    if state != "completed":
        problems.append(f"is {state}")
    if len(charges) != 1:
        problems.append(f"was charged {len(charges)} times")
    elif charged != order.total_cents:
        problems.append(f"was charged {charged} instead of {order.total_cents} cents")
    if len(parcels) != 1:
        problems.append(f"has {len(parcels)} parcels")
    if len(mails) > 1 or (not mails and MAIL_STEP not in skipped):
        problems.append(f"has {len(mails)} mails")
    if order.id not in evidence.invoiced:
        problems.append("has no invoice")
    attempts = execution.attempts if execution else 0
    return OrderReport(
        order.reference, id_, state, attempts, len(charges), charged, len(parcels), len(mails), skipped, kills, problems
    )


def problems(evidence: Evidence, reports: list[OrderReport]) -> list[str]:
    """Everything that is wrong, one sentence each; empty when all is well."""
    found = [f"{report.reference} {problem}" for report in reports for problem in report.problems]
    known = {order.reference for order in evidence.orders}
    for name, books in (("charge", evidence.gateway), ("parcel", evidence.carrier), ("mail", evidence.mailer)):
        strangers = [entry["reference"] for entry in books.entries if entry["reference"] not in known]
        found += [f"a {name} exists for {reference}, which nobody ordered" for reference in strangers]
    for sku in sorted(evidence.taken):
        if evidence.taken[sku] != evidence.reserved.get(sku, 0):
            pieces = f"{evidence.taken[sku]} pieces of {sku} left the stock"
            found.append(f"{pieces}, but {evidence.reserved.get(sku, 0)} are reserved")
    return found


def count_outcomes(steps: dict[str, list[StepRow]]) -> dict[str, dict[str, int]]:
    """How many steps of each name ended in which way."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for rows in steps.values():
        for row in rows:
            found[row.name][row.outcome] += 1
    return {name: dict(counter) for name, counter in found.items()}


def spread(seconds: list[float]) -> dict[str, float] | None:
    """Median and worst of some measurements; ``None`` where nothing was measured."""
    if not seconds:
        return None
    return {"count": len(seconds), "median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}
