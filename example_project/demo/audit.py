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

#: The step behind each kind of mail. It may be skipped when nobody knows whether the mail went out.
MAIL_STEPS = {
    "refusal": "send_refusal",
    "reminder": "send_reminder",
    "apology": "undo send_apology",
    "confirmation": "send_confirmation",
}


@dataclass(frozen=True)
class Books:
    """What one service says: its ledger, and how it answered its requests."""

    entries: list[dict[str, Any]]
    requests: dict[str, int]

    def of(self, order: Order, **wanted: Any) -> list[dict[str, Any]]:
        """The entries of an order that have these values."""
        return [entry for entry in self._having(wanted) if entry["reference"] == order.reference]

    def count(self, **wanted: Any) -> int:
        """How many entries have these values."""
        return len(self._having(wanted))

    def _having(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if all(entry[name] == value for name, value in wanted.items())]


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
    desk: Books
    #: Seconds after which customers who have not paid are reminded.
    remind_after: float
    #: Orders that have an invoice.
    invoiced: set[int]
    #: Pieces that left the stock, by article, and pieces that are reserved, by order.
    taken: dict[str, int]
    reserved: dict[int, int]
    #: What was answered from the journal instead of being run again.
    replayed: Replays
    kills: list[Kill] = field(default_factory=list)
    #: Seconds from a kill until the interrupted execution was run again, by kind of kill.
    waits: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How an order can end, and what must then be in the books."""

    name: str
    #: Of the execution: one whose goods cannot be found fails, for good reason.
    state: str
    charges: int
    refunds: int
    shipped: bool
    mail: str


FULFILLED = Ending("fulfilled", "completed", charges=1, refunds=0, shipped=True, mail="confirmation")
REFUSED = Ending("refused", "completed", charges=0, refunds=0, shipped=False, mail="refusal")
REFUNDED = Ending("refunded", "failed", charges=1, refunds=1, shipped=False, mail="apology")


@dataclass(frozen=True)
class OrderReport:
    """What happened to one order."""

    reference: str
    execution: str
    #: How it had to end.
    ending: str
    state: str
    #: How often it was run, from ``durable list``.
    attempts: int
    charges: int
    refunds: int
    #: What was charged and not refunded.
    paid_cents: int
    parcels: int
    #: How many of each kind.
    mails: dict[str, int]
    #: Steps whose outcome was assumed because nobody knew.
    skipped: list[str]
    #: How many kills hit it in the middle.
    kills: int
    problems: list[str]


def examine(evidence: Evidence) -> list[OrderReport]:
    """Judge every order."""
    hits = Counter(id_ for kill in evidence.kills for id_ in set(kill.orders))
    return [_examine(order, evidence, hits[evidence.ids.get(order.id, "")]) for order in evidence.orders]


def ending_of(order: Order, evidence: Evidence) -> Ending:
    """How an order had to end, after what people answered."""
    if evidence.desk.of(order, kind="approval", answer="no"):
        return REFUSED
    return REFUNDED if order.cannot_be_found else FULFILLED


def _examine(order: Order, evidence: Evidence, kills: int) -> OrderReport:
    id_ = evidence.ids.get(order.id, "")
    execution = evidence.executions.get(id_)
    ending = ending_of(order, evidence)
    charges = evidence.gateway.of(order, entry="charge")
    refunds = evidence.gateway.of(order, entry="refund")
    report = OrderReport(
        reference=order.reference,
        execution=id_,
        ending=ending.name,
        state=execution.state if execution else "unknown to the journal",
        attempts=execution.attempts if execution else 0,
        charges=len(charges),
        refunds=len(refunds),
        paid_cents=sum(e["amount_cents"] for e in charges) - sum(e["amount_cents"] for e in refunds),
        parcels=sum(len(parcels) for parcels in _parcels(order, evidence)),
        mails={tag: len(evidence.mailer.of(order, tag=tag)) for tag in MAIL_STEPS},
        skipped=[row.name for row in evidence.steps.get(id_, []) if row.outcome == "skipped"],
        kills=kills,
        problems=[],
    )
    report.problems.extend(_wrong_end(report, ending))
    report.problems.extend(_wrong_money(order, report, ending))
    report.problems.extend(_wrong_goods(order, report, ending, evidence))
    report.problems.extend(_wrong_questions(order, ending, evidence))
    report.problems.extend(_wrong_mails(order, report, ending, evidence))
    return report


def _wrong_end(report: OrderReport, ending: Ending) -> list[str]:
    return [] if report.state == ending.state else [f"is {report.state}"]


def _wrong_money(order: Order, report: OrderReport, ending: Ending) -> list[str]:
    found = []
    due = order.total_cents * (ending.charges - ending.refunds)
    if report.charges != ending.charges:
        found.append(f"was charged {report.charges} times")
    if report.refunds != ending.refunds:
        found.append(f"was refunded {report.refunds} times")
    if not found and report.paid_cents != due:
        found.append(f"has paid {report.paid_cents} instead of {due} cents")
    return found


def _wrong_goods(order: Order, report: OrderReport, ending: Ending, evidence: Evidence) -> list[str]:
    found = []
    for item, parcels in enumerate(_parcels(order, evidence), 1):
        if len(parcels) != ending.shipped:
            found.append(f"has {len(parcels)} parcels for item {item}")
    if ending.shipped != (order.id in evidence.invoiced):
        found.append("has no invoice" if ending.shipped else "has an invoice")
    wanted = order.quantity if ending.shipped else 0
    if evidence.reserved.get(order.id, 0) != wanted:
        found.append(f"has {evidence.reserved.get(order.id, 0)} pieces reserved instead of {wanted}")
    return found


def _parcels(order: Order, evidence: Evidence) -> list[list[dict[str, Any]]]:
    """The parcels of each item."""
    items = [order.parcel(item) for item in range(1, order.quantity + 1)]
    return [[entry for entry in evidence.carrier.entries if entry["reference"] == item] for item in items]


def _wrong_questions(order: Order, ending: Ending, evidence: Evidence) -> list[str]:
    found = []
    for kind, wanted in (("approval", order.needs_approval), ("payment", order.pays_later and ending is not REFUSED)):
        asked = evidence.desk.of(order, kind=kind)
        if len(asked) != wanted:
            found.append(f"was put to people for its {kind} {len(asked)} times")
        found += [f"waits for its {kind}" for question in asked if question["answer"] is None]
    return found


def _wrong_mails(order: Order, report: OrderReport, ending: Ending, evidence: Evidence) -> list[str]:
    found = []
    # A reminder is sent to whoever takes longer than that, counted from shortly before the question is asked.
    asked = [question for question in evidence.desk.of(order, kind="payment") if question["answered_at"] is not None]
    late = any(question["answered_at"] - question["asked_at"] > evidence.remind_after for question in asked)
    wanted = {ending.mail, "reminder"} if late else {ending.mail}
    allowed = wanted | {"reminder"} if asked else wanted
    for tag, mails in report.mails.items():
        if mails > 1 or (mails and tag not in allowed):
            found.append(f"has {mails} {tag} mails")
        elif not mails and tag in wanted and MAIL_STEPS[tag] not in report.skipped:
            found.append(f"has no {tag} mail")
    return found


def problems(evidence: Evidence, reports: list[OrderReport]) -> list[str]:
    """Everything that is wrong, one sentence each; empty when all is well."""
    found = [f"{report.reference} {problem}" for report in reports for problem in report.problems]
    known = {order.reference for order in evidence.orders}
    known |= {order.parcel(item) for order in evidence.orders for item in range(1, order.quantity + 1)}
    books = {
        "money": evidence.gateway,
        "a parcel": evidence.carrier,
        "a mail": evidence.mailer,
        "a question": evidence.desk,
    }
    for name, book in books.items():
        strangers = [e["reference"] for e in book.entries if e["reference"] not in known]
        found += [f"there is {name} for {reference}, which nobody ordered" for reference in strangers]
    children = [e for e in evidence.executions.values() if e.id not in evidence.ids.values()]
    found += [f"the parcel's task {e.id} is {e.state}" for e in children if e.state != "completed"]
    for sku, taken in sorted(evidence.taken.items()):
        reserved = sum(evidence.reserved.get(order.id, 0) for order in evidence.orders if order.sku == sku)
        if taken != reserved:
            found.append(f"{taken} pieces of {sku} left the stock, but {reserved} are reserved")
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
