"""Turns the evidence into the table, the verdict and the machine-readable result."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from .audit import FULFILLED, MAIL_STEPS, REFUNDED, REFUSED, OrderReport, count_outcomes, spread
from .director import Outcome
from .display import Line, count, killed


def sections(outcome: Outcome, reports: list[OrderReport], found: list[str]) -> list[list[Line]]:
    """The lines of the final table."""
    return [
        _orders(outcome, reports),
        _people(outcome, reports),
        _durability(outcome, reports),
        _kills(outcome, reports, not found),
    ]


def _orders(outcome: Outcome, reports: list[OrderReport]) -> list[Line]:
    evidence, total = outcome.evidence, len(reports)
    ends = Counter(report.ending for report in reports if not report.problems)
    charged = [report for report in reports if report.ending != REFUSED.name]
    charges, refunds = evidence.gateway.count(entry="charge"), evidence.gateway.count(entry="refund")
    twice = sum(report.charges > 1 or report.refunds > 1 for report in reports)
    lost = sum(report.state not in ("completed", "failed") for report in reports)
    shipped = sum(report.ending == FULFILLED.name for report in reports)
    items = sum(
        order.quantity
        for order, report in zip(evidence.orders, reports, strict=True)
        if report.ending == FULFILLED.name
    )
    parcels = len(evidence.carrier.entries)
    unsent = sum(
        not mails and MAIL_STEPS[tag] in report.skipped for report in reports for tag, mails in report.mails.items()
    )
    mail_problem = any("mail" in problem for report in reports for problem in report.problems)
    mail_figure = f"{len(evidence.mailer.entries)}" + (f", {unsent} in doubt" if unsent else "")
    return [
        Line("orders submitted", str(len(evidence.ids)), "the demo", len(evidence.ids) == total),
        Line("  fulfilled: paid, sent, invoiced", str(ends[FULFILLED.name]), "all books"),
        Line("  refused at the front desk, never charged", str(ends[REFUSED.name]), "all books"),
        Line("  out of stock, charged and refunded", str(ends[REFUNDED.name]), "all books"),
        Line("  anything else", str(total - ends.total()), "all books", ends.total() == total),
        Line("orders lost", str(lost), "the journal", lost == 0),
        Line("orders charged or refunded twice", str(twice), "the gateway's ledger", twice == 0),
        Line("charges, of the right amount", str(charges), "the gateway's ledger", charges == len(charged)),
        Line(
            "refunds", str(refunds), "the gateway's ledger", refunds == sum(r.ending == REFUNDED.name for r in reports)
        ),
        Line("parcels, one for each item", str(parcels), "the carrier's ledger", parcels == items),
        Line("invoices", str(len(evidence.invoiced)), "the shop", len(evidence.invoiced) == shipped),
        Line(
            "mails, none twice",
            mail_figure,
            "the mailer, the journal",
            not mail_problem,
        ),
    ]


def _people(outcome: Outcome, reports: list[OrderReport]) -> list[Line]:
    desk = outcome.evidence.desk
    yes, no = desk.count(kind="approval", answer="yes"), desk.count(kind="approval", answer="no")
    reminded = sum(report.mails["reminder"] for report in reports)
    answered = [question for question in desk.entries if question["answered_at"] is not None]
    waited = sum(question["answered_at"] - question["asked_at"] for question in answered)
    return [
        Line("large orders: approved, refused", f"{yes}, {no}", "the front desk"),
        Line("customers who paid later", str(desk.count(kind="payment", answer="yes")), "the front desk"),
        Line("  reminders that they needed", str(reminded), "the mailer's ledger"),
        Line("orders waited for people, without a worker", f"{waited:.0f} s", "the front desk"),
        Line(
            "questions without an answer", str(desk.count(answer=None)), "the front desk", not desk.count(answer=None)
        ),
    ]


def _durability(outcome: Outcome, reports: list[OrderReport]) -> list[Line]:
    evidence = outcome.evidence
    skipped = sum(len(report.skipped) for report in reports)
    repeated = evidence.gateway.requests.get("repeated", 0)
    refused = sum(books.requests.get("refused", 0) for books in (evidence.gateway, evidence.carrier, evidence.mailer))
    return [
        Line("steps replayed, not run again", str(evidence.replayed.steps), "the workers' logs"),
        Line("guarded steps skipped", str(evidence.replayed.guarded), "the workers' logs"),
        Line("  of them in doubt, assumed as done", str(skipped), "the journal"),
        Line("charges and refunds asked again, same key", str(repeated), "the gateway's ledger"),
        Line("requests refused (503), tried again", str(refused), "the services' ledgers"),
    ]


def _kills(outcome: Outcome, reports: list[OrderReport], survived: bool) -> list[Line]:
    evidence = outcome.evidence
    hit = sum(report.kills > 0 for report in reports)
    most = max((report.kills for report in reports), default=0)
    lines = [
        Line("kills survived" if survived else "kills", f"{len(evidence.kills)} × SIGKILL", "the demo"),
        Line("  whom", killed(evidence.kills), "the demo"),
        Line(
            "  orders interrupted by them", f"{hit}, one of them {most} times" if most > 1 else str(hit), "the workers"
        ),
    ]
    for kind, name in (("child", "pool process"), ("worker", "whole worker")):
        measured = spread(evidence.waits[kind])
        if measured:
            figure = f"{measured['median']:.2f} s, at worst {measured['worst']:.2f} s"
            lines.append(Line(f"  pause after the death of a {name}", figure, "the workers"))
    if outcome.lost_workers:
        lines.append(Line("workers that ended by themselves", str(len(outcome.lost_workers)), "the demo"))
    if outcome.flushed_at is not None:
        lines.append(Line("broker emptied in mid-flight", f"after {outcome.flushed_at:.1f} s", "the demo"))
    lines.append(Line("time", f"{outcome.seconds:.1f} s", "the demo"))
    return lines


def verdict(reports: list[OrderReport], found: list[str]) -> str:
    """The result in one sentence."""
    if found:
        return f"FAILED: {count(len(found), 'thing is', 'things are')} wrong."
    ends = Counter(report.ending for report in reports)
    each = ", ".join(f"{ends[ending.name]} {ending.name}" for ending in (FULFILLED, REFUSED, REFUNDED))
    return f"All {len(reports)} orders came to the right end: {each}. None was lost, and none was charged twice."


def as_json(outcome: Outcome, reports: list[OrderReport], found: list[str]) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    evidence = outcome.evidence
    return {
        "ok": not found,
        "problems": found,
        "seconds": round(outcome.seconds, 2),
        "orders": [asdict(report) for report in reports],
        "orders_submitted": len(evidence.ids),
        "endings": Counter(report.ending for report in reports if not report.problems),
        "replays": asdict(evidence.replayed),
        "step_outcomes": count_outcomes(evidence.steps),
        "requests": {
            "gateway": evidence.gateway.requests,
            "carrier": evidence.carrier.requests,
            "mailer": evidence.mailer.requests,
            "desk": evidence.desk.requests,
        },
        "kills": [asdict(kill) for kill in evidence.kills],
        "kills_of_children": sum(kill.kind == "child" for kill in evidence.kills),
        "kills_of_workers": sum(kill.kind == "worker" for kill in evidence.kills),
        "pause_after_kill_seconds": {kind: spread(waits) for kind, waits in evidence.waits.items()},
        "workers_ended_by_themselves": outcome.lost_workers,
        "broker_flushed_after_seconds": outcome.flushed_at,
    }
