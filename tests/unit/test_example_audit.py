"""The demo's verdict: it must notice every way in which an order can go wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from example_project.demo.audit import Books, Evidence, examine, problems, spread
from example_project.demo.chaos import Kill
from example_project.demo.journal import Execution, StepRow
from example_project.demo.replays import Replays, read_replays
from example_project.shop import Order

ORDER = Order(1, "order-001", "Ada", "ada@example.org", "cup", 2, 1780)
CHARGE = {"id": "ch_1", "reference": "order-001", "amount_cents": 1780}
PARCEL = {"id": "pa_1", "reference": "order-001"}
MAIL = {"id": "ma_1", "reference": "order-001"}


def books(*entries: dict[str, Any]) -> Books:
    return Books(list(entries), {})


def mailed(outcome: str) -> dict[str, list[StepRow]]:
    return {"e1": [StepRow("4", "send_confirmation", outcome, 1)]}


GOOD = Evidence(
    orders=[ORDER],
    ids={1: "e1"},
    executions={"e1": Execution("e1", "completed", 0, 6)},
    steps=mailed("result"),
    gateway=books(CHARGE),
    carrier=books(PARCEL),
    mailer=books(MAIL),
    invoiced={1},
    taken={"cup": 2},
    reserved={"cup": 2},
    replayed=Replays(0, 0, 0),
)


def verdict(**changes: Any) -> list[str]:
    evidence = dataclasses.replace(GOOD, **changes)
    return problems(evidence, examine(evidence))


def test_all_is_well() -> None:
    assert verdict() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ids": {}}, "order-001 is unknown to the journal"),
        ({"executions": {}}, "order-001 is unknown to the journal"),
        ({"executions": {"e1": Execution("e1", "running", 0, 3)}}, "order-001 is running"),
        ({"executions": {"e1": Execution("e1", "ambiguous", 0, 3)}}, "order-001 is ambiguous"),
        ({"gateway": books()}, "order-001 was charged 0 times"),
        ({"gateway": books(CHARGE, CHARGE)}, "order-001 was charged 2 times"),
        ({"gateway": books({**CHARGE, "amount_cents": 1})}, "order-001 was charged 1 instead of 1780 cents"),
        ({"carrier": books()}, "order-001 has 0 parcels"),
        ({"carrier": books(PARCEL, PARCEL)}, "order-001 has 2 parcels"),
        ({"mailer": books()}, "order-001 has 0 mails"),
        ({"mailer": books(MAIL, MAIL)}, "order-001 has 2 mails"),
        ({"mailer": books(MAIL, MAIL), "steps": mailed("skipped")}, "order-001 has 2 mails"),
        ({"invoiced": set()}, "order-001 has no invoice"),
        ({"taken": {"cup": 4}}, "4 pieces of cup left the stock, but 2 are reserved"),
        (
            {"carrier": books(PARCEL, {**PARCEL, "reference": "order-9"})},
            "a parcel exists for order-9, which nobody ordered",
        ),
    ],
)
def test_every_wrong_is_noticed(changes: dict[str, Any], problem: str) -> None:
    assert problem in verdict(**changes)


def test_a_mail_may_be_missing_where_the_journal_says_skipped() -> None:
    assert verdict(mailer=books(), steps=mailed("skipped")) == []


def test_kills_are_counted_per_order() -> None:
    kills = [Kill(1.0, "child", "worker1", 7, ("e1",)), Kill(2.0, "worker", "worker1", 8, ("e2", "e1"))]
    assert [report.kills for report in examine(dataclasses.replace(GOOD, kills=kills))] == [2]


def test_replays_are_read_from_the_logs(tmp_path: Path) -> None:
    line = "[INFO] fulfil[order-001] replayed {} steps, {} guarded ones skipped, 2 called\n"
    (tmp_path / "worker1.log").write_text("[INFO] ready\n" + line.format(3, 1) + line.format(4, 2))
    (tmp_path / "worker2.log").write_text(line.format(5, 3))
    (tmp_path / "gateway.log").write_text(line.format(100, 100))
    assert read_replays(tmp_path) == Replays(runs=3, steps=12, guarded=6)


def test_nothing_measured_is_no_figure() -> None:
    assert spread([]) is None
    assert spread([0.5, 1.0, 4.25]) == {"count": 3, "median": 1.0, "worst": 4.25}
