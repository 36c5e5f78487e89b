"""Turns the evidence into the table, the verdict and the machine-readable result."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .audit import MAIL_STEP, OrderReport, count_outcomes, spread
from .director import Outcome
from .display import Line, count, killed


def sections(outcome: Outcome, reports: list[OrderReport], found: list[str]) -> list[list[Line]]:
    """The lines of the final table."""
    return [_orders(outcome, reports), _durability(outcome, reports), _kills(outcome, reports, not found)]


def _orders(outcome: Outcome, reports: list[OrderReport]) -> list[Line]:
    evidence, total = outcome.evidence, len(reports)
    submitted, done = len(evidence.ids), sum(report.state == "completed" for report in reports)
    right = sum(
        report.charges == 1 and report.charged_cents == order.total_cents
        for order, report in zip(evidence.orders, reports, strict=True)
    )
    twice = sum(report.charges > 1 for report in reports)
    mails = len(evidence.mailer.entries)
    without = sum(report.mails == 0 for report in reports)
    silent = sum(report.mails == 0 and MAIL_STEP in report.skipped for report in reports)
    mails_good = all(report.mails <= 1 for report in reports) and without == silent
    mail_figure = f"{mails}" + (f" + {silent} assumed" if silent else "")
    return [
        Line("orders submitted", str(submitted), "the demo", submitted == total),
        Line("orders fulfilled", str(done), "the journal", done == total),
        Line("orders charged once, the right amount", str(right), "the gateway's ledger", right == total),
        Line("orders charged twice", str(twice), "the gateway's ledger", twice == 0),
        Line(
            "parcels", str(len(evidence.carrier.entries)), "the carrier's ledger", all(r.parcels == 1 for r in reports)
        ),
        Line("mails, at most one per order", mail_figure, "the mailer's ledger, the journal", mails_good),
        Line("invoices", str(len(evidence.invoiced)), "the shop", len(evidence.invoiced) == total),
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
        Line("charges asked for again, same key", str(repeated), "the gateway's ledger"),
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
    return f"All {len(reports)} orders were fulfilled. Every one was charged once, and none was lost."


def as_json(outcome: Outcome, reports: list[OrderReport], found: list[str]) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    evidence = outcome.evidence
    return {
        "ok": not found,
        "problems": found,
        "seconds": round(outcome.seconds, 2),
        "orders": [asdict(report) for report in reports],
        "orders_submitted": len(evidence.ids),
        "orders_fulfilled": sum(report.state == "completed" for report in reports),
        "replays": asdict(evidence.replayed),
        "step_outcomes": count_outcomes(evidence.steps),
        "requests": {
            "gateway": evidence.gateway.requests,
            "carrier": evidence.carrier.requests,
            "mailer": evidence.mailer.requests,
        },
        "kills": [asdict(kill) for kill in evidence.kills],
        "kills_of_children": sum(kill.kind == "child" for kill in evidence.kills),
        "kills_of_workers": sum(kill.kind == "worker" for kill in evidence.kills),
        "pause_after_kill_seconds": {kind: spread(waits) for kind, waits in evidence.waits.items()},
        "workers_ended_by_themselves": outcome.lost_workers,
        "broker_flushed_after_seconds": outcome.flushed_at,
    }
