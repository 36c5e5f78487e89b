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

#: An order that is fulfilled, after an approval and a payment that came late.
ORDER = Order(1, "order-001", "Ada", "ada@example.org", "kettle", 2, 11900, pays_later=True)
CHARGE = {"id": "ch_1", "entry": "charge", "reference": "order-001", "amount_cents": 11900}
REFUND = {**CHARGE, "id": "re_2", "entry": "refund"}
PARCEL, SECOND = {"id": "pa_1", "reference": "order-001/1"}, {"id": "pa_2", "reference": "order-001/2"}
STRANGER = {"id": "pa_3", "reference": "order-001/3"}


def mail(tag: str) -> dict[str, Any]:
    return {"id": "ma_1", "reference": "order-001", "tag": tag}


def question(kind: str, answer: str | None = "yes", seconds: float = 1.0) -> dict[str, Any]:
    answered = None if answer is None else 100.0 + seconds
    return {"kind": kind, "reference": "order-001", "answer": answer, "asked_at": 100.0, "answered_at": answered}


def books(*entries: dict[str, Any]) -> Books:
    return Books(list(entries), {})


def skipped(*steps: str) -> dict[str, list[StepRow]]:
    return {"e1": [StepRow(str(number), name, "skipped", 1) for number, name in enumerate(steps)]}


def ended(state: str) -> dict[str, Execution]:
    return {"e1": Execution("e1", state, 0, 6), "child": Execution("child", "completed", 0, 2)}


APPROVED, PAID_LATE = question("approval"), question("payment", seconds=5.0)
CONFIRMED, REMINDED = mail("confirmation"), mail("reminder")

GOOD = Evidence(
    orders=[ORDER],
    ids={1: "e1"},
    executions=ended("completed"),
    steps={},
    gateway=books(CHARGE),
    carrier=books(PARCEL, SECOND),
    mailer=books(REMINDED, CONFIRMED),
    desk=books(APPROVED, PAID_LATE),
    remind_after=2.0,
    invoiced={1},
    taken={"kettle": 2},
    reserved={1: 2},
    replayed=Replays(0, 0, 0),
)

REFUSED = dataclasses.replace(
    GOOD,
    gateway=books(),
    carrier=books(),
    mailer=books(mail("refusal")),
    desk=books(question("approval", "no")),
    invoiced=set(),
    taken={"kettle": 0},
    reserved={},
)

#: Its number is one of those that cannot be found.
MISSING = dataclasses.replace(ORDER, id=7)
REFUNDED = dataclasses.replace(
    GOOD,
    orders=[MISSING],
    ids={7: "e1"},
    executions=ended("failed"),
    gateway=books(CHARGE, REFUND),
    carrier=books(),
    mailer=books(REMINDED, mail("apology")),
    invoiced=set(),
    taken={"kettle": 0},
    reserved={},
)


def verdict(evidence: Evidence = GOOD, **changes: Any) -> list[str]:
    evidence = dataclasses.replace(evidence, **changes)
    return problems(evidence, examine(evidence))


@pytest.mark.parametrize(("evidence", "ending"), [(GOOD, "fulfilled"), (REFUSED, "refused"), (REFUNDED, "refunded")])
def test_all_is_well(evidence: Evidence, ending: str) -> None:
    assert verdict(evidence) == []
    assert [report.ending for report in examine(evidence)] == [ending]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ids": {}}, "order-001 is unknown to the journal"),
        ({"executions": {}}, "order-001 is unknown to the journal"),
        ({"executions": ended("running")}, "order-001 is running"),
        ({"executions": ended("suspended")}, "order-001 is suspended"),
        ({"executions": ended("ambiguous")}, "order-001 is ambiguous"),
        ({"gateway": books()}, "order-001 was charged 0 times"),
        ({"gateway": books(CHARGE, CHARGE)}, "order-001 was charged 2 times"),
        ({"gateway": books(CHARGE, REFUND)}, "order-001 was refunded 1 times"),
        ({"gateway": books({**CHARGE, "amount_cents": 1})}, "order-001 has paid 1 instead of 11900 cents"),
        ({"carrier": books()}, "order-001 has 0 parcels for item 1"),
        ({"carrier": books(PARCEL)}, "order-001 has 0 parcels for item 2"),
        ({"carrier": books(PARCEL, PARCEL, SECOND)}, "order-001 has 2 parcels for item 1"),
        (
            {"executions": {**ended("completed"), "child": Execution("child", "running", 0, 2)}},
            "the parcel's task child is running",
        ),
        ({"mailer": books(REMINDED)}, "order-001 has no confirmation mail"),
        ({"mailer": books(CONFIRMED)}, "order-001 has no reminder mail"),
        ({"mailer": books(REMINDED, CONFIRMED, CONFIRMED)}, "order-001 has 2 confirmation mails"),
        ({"mailer": books(REMINDED, REMINDED, CONFIRMED)}, "order-001 has 2 reminder mails"),
        ({"mailer": books(REMINDED, CONFIRMED, mail("apology"))}, "order-001 has 1 apology mails"),
        (
            {"mailer": books(REMINDED, CONFIRMED, CONFIRMED), "steps": skipped("send_confirmation")},
            "order-001 has 2 confirmation mails",
        ),
        ({"desk": books(PAID_LATE)}, "order-001 was put to people for its approval 0 times"),
        ({"desk": books(APPROVED, APPROVED, PAID_LATE)}, "order-001 was put to people for its approval 2 times"),
        ({"desk": books(APPROVED)}, "order-001 was put to people for its payment 0 times"),
        ({"desk": books(APPROVED, question("payment", None))}, "order-001 waits for its payment"),
        ({"invoiced": set()}, "order-001 has no invoice"),
        ({"reserved": {}}, "order-001 has 0 pieces reserved instead of 2"),
        ({"taken": {"kettle": 4}}, "4 pieces of kettle left the stock, but 2 are reserved"),
        (
            {"carrier": books(PARCEL, SECOND, STRANGER)},
            "there is a parcel for order-001/3, which nobody ordered",
        ),
    ],
)
def test_every_wrong_is_noticed(changes: dict[str, Any], problem: str) -> None:
    assert problem in verdict(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"executions": ended("failed")}, "order-001 is failed"),
        ({"gateway": books(CHARGE)}, "order-001 was charged 1 times"),
        ({"carrier": books(PARCEL)}, "order-001 has 1 parcels for item 1"),
        ({"mailer": books()}, "order-001 has no refusal mail"),
        ({"mailer": books(mail("refusal"), CONFIRMED)}, "order-001 has 1 confirmation mails"),
        ({"invoiced": {1}}, "order-001 has an invoice"),
        ({"reserved": {1: 2}, "taken": {"kettle": 2}}, "order-001 has 2 pieces reserved instead of 0"),
    ],
)
def test_every_wrong_with_a_refused_order_is_noticed(changes: dict[str, Any], problem: str) -> None:
    assert verdict(REFUSED, **changes) == [problem]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"executions": ended("completed")}, "order-001 is completed"),
        ({"gateway": books(CHARGE)}, "order-001 was refunded 0 times"),
        ({"gateway": books(CHARGE, REFUND, REFUND)}, "order-001 was refunded 2 times"),
        ({"gateway": books(CHARGE, {**REFUND, "amount_cents": 1})}, "order-001 has paid 11899 instead of 0 cents"),
        ({"carrier": books(PARCEL)}, "order-001 has 1 parcels for item 1"),
        ({"mailer": books(REMINDED)}, "order-001 has no apology mail"),
        ({"reserved": {7: 2}, "taken": {"kettle": 2}}, "order-001 has 2 pieces reserved instead of 0"),
    ],
)
def test_every_wrong_with_a_refunded_order_is_noticed(changes: dict[str, Any], problem: str) -> None:
    assert verdict(REFUNDED, **changes) == [problem]


def test_a_mail_may_be_missing_where_the_journal_says_skipped() -> None:
    assert verdict(mailer=books(), steps=skipped("send_reminder", "send_confirmation")) == []
    assert verdict(REFUNDED, mailer=books(REMINDED), steps=skipped("undo send_apology")) == []


def test_who_pays_in_time_needs_no_reminder_and_may_have_got_one() -> None:
    in_time = books(APPROVED, question("payment", seconds=1.9))
    assert verdict(desk=in_time, mailer=books(CONFIRMED)) == []
    assert verdict(desk=in_time) == []


def test_kills_are_counted_per_order() -> None:
    kills = [
        Kill(1.0, "child", "worker1", 7, ("e1",), ("e1",)),
        Kill(2.0, "worker", "worker1", 8, ("e2", "child", "child2"), ("e2", "e1", "e1")),
    ]
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
