"""``durable promise``, and what ``list`` and ``show`` say of an execution that waits."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, Promise, PromiseRejected
from tests.support.commands import Answer
from tests.support.commands import run as run_command
from tests.support.delivery import Delivery
from tests.support.lab import Lab

from .cli_app import Receipt

pytestmark = pytest.mark.usefixtures("database")

DAY = 86_400


class Body:
    """Waits for an approval, for at most three days."""

    def __init__(self) -> None:
        self.made: list[Promise] = []

    def __call__(self, ctx: DurableContext) -> Any:
        ctx.step("load", len, "")
        ctx.sleep(0)
        self.made.append(ctx.promise("approval", timeout=3 * DAY))
        ctx.promise("unused")
        return ctx.select(approval=self.made[-1], late=ctx.timer(days=9)).value

    @property
    def id(self) -> str:
        return self.made[0].id


@pytest.fixture
def body(deliver: Delivery) -> Body:
    body = Body()
    deliver.suspends(body)
    return body


def run(lab: Lab, *args: str, fails: int = 0) -> Answer:
    return run_command(lab.app, *args, fails=fails)


def test_what_an_execution_waits_for_is_shown_without_its_token(lab: Lab, deliver: Delivery, body: Body) -> None:
    def sleeps(ctx: DurableContext) -> None:
        ctx.sleep(DAY)

    deliver.suspends(sleeps, id="two")
    lab.run(lambda ctx: None, id="three")
    listed = run(lab, "list").text
    assert [line.split()[-1] for line in listed.splitlines()[1:]] == ["TIME", "TIME", "TIME"]
    assert "approval, TIME" in listed.splitlines()[3]
    three, two, one = run(lab, "list", "--json").rows
    assert three["waits_for"] is None
    assert two["waits_for"] == {"promises": [], "children": [], "until": two["wake_at"]}
    [awaited] = one["waits_for"]["promises"]
    assert (awaited["id"], awaited["name"]) == (body.id, "approval")
    assert awaited["expires_at"][:18] == one["waits_for"]["until"][:18]

    shown = run(lab, "show", "one")
    assert f"  waits for   promise approval ({body.id}, expires TIME)\n" in shown.text
    table = [" ".join(line.split()[:-1] if " TIME" in line else line.split()) for line in shown.text.splitlines()]
    assert table[table.index("position step effect outcome tries duration key") + 1 :] == [
        "0 load idempotent done 1 TOOK",
        "1 sleep, until TIME",
        "2 promise approval made",
        "3 promise unused made",
        "4 timer, until TIME",
        "5 wait approval, late open",
    ]
    waits = run(lab, "show", "one", "--json").json["waits"]
    assert [(w["position"], w["kind"], w["name"], w["outcome"]) for w in waits] == [
        ("1", "sleep", "sleep", "done"),
        ("2", "promise", "approval", "made"),
        ("3", "promise", "unused", "made"),
        ("4", "timer", "timer", "made"),
        ("5", "wait", "approval, late", "open"),
    ]
    assert [w["until"] is not None for w in waits] == [True, False, False, True, False]

    everything = [run(lab, "show", "one", *args).out for args in ((), ("--reveal",), ("--json", "--reveal"))]
    everything += [run(lab, "promise", "list", "one", *args).out for args in ((), ("--json",))]
    assert body.made[0].token not in "".join(everything)
    assert celery_durable.get("one", app=lab.app).status().awaits == ("approval",)


def test_promises_are_listed(lab: Lab, deliver: Delivery, body: Body) -> None:
    rows = run(lab, "promise", "list", "one", "--json").rows
    assert [(r["name"], r["state"], r["awaited"]) for r in rows] == [
        ("approval", "pending", True),
        ("unused", "pending", False),
    ]
    assert run(lab, "promise", "list", "one").text.split() == [
        *("id", "name", "state", "awaited", "expires"),
        *(body.id, "approval", "pending", "yes", "TIME"),
        *(rows[1]["id"], "unused", "pending", "no"),
    ]
    lab.run(lambda ctx: None, id="two")
    none = run(lab, "promise", "list", "two")
    assert (none.out, none.err) == ("", "Execution two has made no promise.\n")
    assert "there is no execution 'nobody'" in run(lab, "promise", "list", "nobody", fails=1).err


@pytest.mark.parametrize("by", ["token", "force"])
def test_a_promise_is_resolved(lab: Lab, deliver: Delivery, body: Body, by: str) -> None:
    how = ["--force"] if by == "force" else ["--token", body.made[0].token]
    value = ["--value", '{"id": "r1", "total": "9.99"}', "--as", "tests.integration.cli.cli_app:Receipt"]
    answer = run(lab, "promise", "resolve", body.id, *how, *value)
    assert answer.out == f"Promise 'approval' ({body.id}) is resolved.\n"
    again = run(lab, "promise", "resolve", body.id, *how, *value, "--json").json
    assert again == {"id": body.id, "name": "approval", "child": None, "state": "resolved", "again": True}
    error = run(lab, "promise", "resolve", body.id, *how, "--json", fails=1).err
    assert json.loads(error)["code"] == "CD603"
    assert deliver(body) == Receipt("r1", Decimal("9.99"))
    shown = run(lab, "show", "one", "--json", "--reveal").json["waits"][-1]
    assert (shown["outcome"], shown["value"]) == ("done", {"key": "approval", "value": {"id": "r1", "total": "9.99"}})


def test_a_promise_is_rejected(lab: Lab, deliver: Delivery, body: Body) -> None:
    answer = run(lab, "promise", "reject", body.id, "--force", "--reason", "too dear", "--json")
    assert answer.json == {"id": body.id, "name": "approval", "child": None, "state": "rejected", "again": False}
    with pytest.raises(PromiseRejected, match="was rejected: too dear"):
        deliver(body)
    assert run(lab, "show", "one", "--json").json["waits"][-1]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "give the promise's --token; or --force, to settle it as an operator without one"),
        (("--token", "x", "--force"), 2, "give the promise's --token; or --force"),
        (("--token", "x"), 1, "[CD604] there is no promise with this id and token."),
        (("--force", "--value", "text"), 2, "--value is not JSON"),
        (("--force", "--as", "Receipt"), 2, "--as Receipt: it looks like module:Class, or json"),
        (("--force", "--as", "tests.integration.cli.cli_app:Receipt"), 2, "--value does not fit"),
    ],
)
def test_mistakes_are_told(lab: Lab, body: Body, args: tuple[str, ...], code: int, message: str) -> None:
    answer = run(lab, "promise", "resolve", body.id, *args, fails=code)
    assert message in answer.err
    assert lab.runtime.promises.look([body.id]).rows[body.id].pending


def test_an_operator_cannot_settle_what_is_not_there(lab: Lab, body: Body) -> None:
    answer = run(lab, "promise", "resolve", "nothing", "--force", fails=1)
    assert answer.err == "Error: [CD604] there is no promise 'nothing' that could be settled. See: promise list ID\n"
