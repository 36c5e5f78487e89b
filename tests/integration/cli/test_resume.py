"""What an execution does after it was parked and somebody let it go on: nothing that was done is done again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_durable.runtime import Runtime
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger

from .cli_app import Switch, build

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def app(database: JournalDatabase, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Tasks are called eagerly: a parked one goes on when it is called again under its id."""
    for name, value in ledger.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Switch, "version", "a")
    monkeypatch.setattr(Switch, "down", False)
    app = build(database.conf)
    yield app
    Runtime.of(app).end()


def call(app: Celery, task: str, task_id: str, *args: Any) -> Any:
    return app.tasks[task].apply(args, task_id=task_id)


def state(app: Celery, task_id: str) -> str:
    return str(run(app, "show", task_id, "--json").json["state"])


@pytest.fixture
def conflict(app: Celery, ledger: Ledger) -> str:
    """An execution that paid in a body that has changed since, and now asks to pay with another argument."""
    assert call(app, "changing", "c1", 1).state == "FAILURE"
    assert ledger.count("pay") == 1
    Switch.version = "b"
    run(app, "resume", "c1")
    call(app, "changing", "c1", 1)
    assert state(app, "c1") == "ambiguous"
    return "c1"


def test_a_conflict_is_parked_again_when_it_is_only_resumed(app: Celery, conflict: str, ledger: Ledger):
    """Its policy is RERUN, which answers lost knowledge; a conflict is none."""
    run(app, "resume", conflict)
    call(app, "changing", conflict, 1)
    assert state(app, conflict) == "ambiguous"
    assert ledger.count("pay") == 1


def test_a_conflict_stays_one_in_the_next_generation(app: Celery, conflict: str, ledger: Ledger):
    Switch.version = "c"
    run(app, "resume", conflict)
    call(app, "changing", conflict, 1)
    shown = run(app, "show", conflict, "--json").json
    assert (shown["state"], shown["generation"]) == ("ambiguous", 3)
    assert [(s["name"], s["outcome"]) for s in shown["steps"]] == [("first-c", "done"), ("pay", "conflict")]
    assert ledger.count("pay") == 1


@pytest.mark.parametrize(
    ("decision", "result", "payments"),
    [
        (("--value", '"paid by hand"'), "paid by hand", 1),
        (("--run",), "paid 1 at evening", 2),
        (("--fail", "ask the customer"), None, 1),
    ],
    ids=["value", "run", "fail"],
)
def test_a_conflict_ends_as_the_operator_says(
    app: Celery, conflict: str, ledger: Ledger, decision: tuple[str, ...], result: str | None, payments: int
):
    run(app, "resolve", conflict, "1", *decision)
    ended = call(app, "changing", conflict, 1)
    assert ended.result == result if result else str(ended.result) == "[CD302] ask the customer"
    shown = run(app, "show", conflict, "--json").json
    # It was parked; it is not any more, and the reason is gone.
    assert (shown["state"], shown["reason"]) == ("completed" if result else "failed", None)
    assert ledger.count("pay") == payments


def test_an_execution_parked_for_a_changed_body_can_be_parked_again(app: Celery, ledger: Ledger):
    app.conf.durable_on_divergence = "park"
    call(app, "changing", "p1", 1)
    Switch.version = "b"
    for _ in range(2):
        run(app, "resume", "p1")
        call(app, "changing", "p1", 1)
        shown = run(app, "show", "p1", "--json").json
        assert (shown["state"], shown["generation"]) == ("quarantined", 1)
        assert shown["reason"].startswith("[CD101] execution p1 diverged from its journal at position 0")
    # With its old body it goes on where it stopped.
    Switch.version = "a"
    run(app, "resume", "p1")
    assert str(call(app, "changing", "p1", 1).result) == "stop here, in the first version"
    assert ledger.count("pay") == 1


def test_a_doubt_about_a_shared_key_ends_with_the_doubt_of_its_holder(app: Celery, ledger: Ledger):
    Switch.down = True
    call(app, "holder", "h1", 5)
    assert state(app, "h1") == "ambiguous"
    call(app, "holder", "h2", 5)
    shown = run(app, "show", "h2", "--json").json
    assert shown["reason"] == "step 'named' (position 0): an intent under the same key= in h1"

    run(app, "resume", "h2")
    call(app, "holder", "h2", 5)
    assert state(app, "h2") == "ambiguous"

    run(app, "resolve", "h1", "--value", '"it was there"')
    run(app, "resume", "h2")
    assert call(app, "holder", "h2", 5).result == "it was there"
    assert ledger.count("named") == 1
