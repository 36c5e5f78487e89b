"""``durable promise`` for a child task that will never end."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import ChildFailed, DurableContext, State
from celery_durable.store.children import kept_by
from celery_durable.store.tables import executions
from tests.integration.children.test_children import Family
from tests.support.commands import Answer
from tests.support.commands import run as run_command
from tests.support.delivery import Delivery
from tests.support.lab import Lab

from .cli_app import Receipt

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def family(lab: Lab) -> Family:
    return Family(lab)


def run(lab: Lab, *args: str, fails: int = 0) -> Answer:
    return run_command(lab.app, *args, fails=fails)


@pytest.mark.parametrize("by", ["task id", "promise"])
def test_a_lost_child_is_given_a_result(lab: Lab, deliver: Delivery, family: Family, by: str) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.call(family.plain.s(1))

    deliver.suspends(body)
    # The broker has forgotten its message.
    [child] = family.started()
    [waits] = [row["waits_for"]["children"] for row in run(lab, "list", "--json").rows]
    assert [one["id"] for one in waits] == [child]
    [listed] = run(lab, "promise", "list", "one", "--json").rows
    assert (listed["id"], listed["child"]) == (kept_by(child), child)
    name = child if by == "task id" else listed["id"]
    value = ["--value", '{"id": "r1", "total": "9.99"}', "--as", "tests.integration.cli.cli_app:Receipt"]
    answer = run(lab, "promise", "resolve", name, "--force", *value, "--note", "found in the mail")
    assert answer.out == f"Child 'plain' ({child}) is resolved.\n"
    again = run(lab, "promise", "resolve", name, "--force", *value, "--json").json
    assert again == {"id": kept_by(child), "name": "plain", "child": child, "state": "resolved", "again": True}
    # Were it to end after all, nobody would take its result.
    family.settle(child, "late")
    assert deliver(body) == Receipt("r1", Decimal("9.99"))

    [decision] = run(lab, "show", "one", "--json").json["decisions"]
    assert (decision["name"], decision["decision"], decision["note"], decision["promise"]) == (
        "plain",
        "resolved",
        "found in the mail",
        kept_by(child),
    )
    assert "@" in decision["by"]
    shown = run(lab, "show", "one").out
    assert f"of plain: {decision['by']} decided: resolved: found in the mail" in shown


def test_a_lost_child_is_given_up(lab: Lab, deliver: Delivery, family: Family) -> None:
    caught: list[ChildFailed] = []

    def body(ctx: DurableContext) -> str:
        try:
            ctx.call(family.plain.s(1))
        except ChildFailed as error:
            caught.append(error)
        return "went on"

    deliver.suspends(body)
    [child] = family.started()
    answer = run(lab, "promise", "reject", child, "--force", "--reason", "the message was lost")
    assert answer.out == f"Child 'plain' ({child}) is rejected.\n"
    assert deliver(body) == "went on"
    assert (str(caught[0].error), caught[0].child_id) == ("the message was lost", child)
    assert [d["decision"] for d in run(lab, "show", "one", "--json").json["decisions"]] == ["rejected"]


def test_decisions_of_several_children_and_promises_are_all_noted(
    lab: Lab,
    deliver: Delivery,
    family: Family,
) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        made[:] = [promise.id, promise.token]
        return [ctx.wait(promise), ctx.gather(family.plain.s(1), family.plain.s(2))]

    made: list[str] = []
    deliver.suspends(body)
    run(lab, "promise", "resolve", made[0], "--force", "--value", "1")
    deliver.suspends(body)
    for number, child in enumerate(family.started()):
        run(lab, "promise", "resolve", child, "--force", "--value", str(number), "--note", f"note {number}")
    assert deliver(body) == [1, [0, 1]]
    found = run(lab, "show", "one", "--json").json["decisions"]
    assert [(d["name"], d["note"]) for d in found] == [("approval", None), ("plain", "note 0"), ("plain", "note 1")]


def test_who_has_the_token_is_no_operator(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        made[:] = [promise.id, promise.token]
        return ctx.wait(promise)

    made: list[str] = []
    deliver.suspends(body)
    run(lab, "promise", "resolve", made[0], "--token", made[1])
    assert run(lab, "show", "one", "--json").json["decisions"] == []


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.SUSPENDED, State.AMBIGUOUS, State.QUARANTINED])
def test_a_child_that_has_an_execution_is_not_lost(
    lab: Lab,
    deliver: Delivery,
    family: Family,
    state: State,
) -> None:
    deliver.suspends(lambda ctx: ctx.call(family.kid.s(1)))
    [child] = family.started()
    lab.sql(sa.update(executions).where(executions.c.id == child).values(state=state.value))
    error = json.loads(run(lab, "promise", "resolve", child, "--force", "--json", fails=1).err)
    assert error["error"] == "WrongState"
    assert f"child 'kid' ({child}) is not lost: it is an execution, and {state}." in error["message"]
    cure = {State.AMBIGUOUS: "resolve", State.QUARANTINED: "resume"}.get(state, "show")
    assert f"celery durable {cure} {child}" in error["message"]
    assert f"celery durable cancel {child}" in error["message"]
    # What the message says helps.
    run(lab, "cancel", child)
    again = json.loads(run(lab, "promise", "resolve", child, "--force", "--json", fails=1).err)
    assert again["error"] == "PromiseSettled"


def test_a_durable_child_whose_row_is_gone_is_lost(lab: Lab, deliver: Delivery, family: Family) -> None:
    def body(ctx: DurableContext) -> Any:
        return ctx.call(family.kid.s(1))

    deliver.suspends(body)
    [child] = family.started()
    lab.sql(sa.delete(executions).where(executions.c.id == child))
    run(lab, "promise", "resolve", child, "--force", "--value", "6")
    assert deliver(body) == 6


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "give the promise's --token; or --force"),
        (("--note", "why", "--token", "x"), 2, "--note says why an operator settles it: it goes with --force"),
        (("--token", "x"), 1, "has no token: the end of that task settles it. If the task is lost: celery durable"),
        (("--force", "--value", "text"), 2, "--value is not JSON"),
    ],
)
def test_mistakes_are_told(
    lab: Lab,
    deliver: Delivery,
    family: Family,
    args: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    deliver.suspends(lambda ctx: ctx.call(family.plain.s(1)))
    [child] = family.started()
    promise = kept_by(child)
    assert promise is not None
    assert message in " ".join(run(lab, "promise", "resolve", child, *args, fails=code).err.split())
    assert lab.runtime.promises.look([promise]).rows[promise].pending
