"""What operators and scripts give ``celery durable`` in a process of its own: tokens, ``--force``, ``--no-undo``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_durable import DurableContext, Promise
from celery_durable.runtime import Runtime
from celery_durable.store import Operations
from celery_durable.store.records import State
from tests.support.commands import Answer, run_process
from tests.support.conf import conf_env
from tests.support.databases import JournalDatabase
from tests.support.delivery import Delivery
from tests.support.lab import Lab
from tests.support.ledger import Ledger

from .cli_app import build

APP = "tests.integration.cli.cli_app"

pytestmark = pytest.mark.databases("sqlite")

Command = Callable[..., Answer]

# -- promises ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(lab: Lab, database: JournalDatabase) -> Command:
    """Runs a command on the lab's journal, for an application of the lab's name unless the test says otherwise."""
    own = {"broker_url": "memory://", "durable_namespace": lab.runtime.settings.namespace}

    def run(*args: str, namespace: str | None = None, env: dict[str, str] | None = None, **options: Any) -> Answer:
        settings = own if namespace is None else {**own, "durable_namespace": namespace}
        return run_process(APP, *args, env={**conf_env(database.conf, settings), **(env or {})}, **options)

    return run


@pytest.fixture
def promise(deliver: Delivery) -> Promise:
    """One that an execution waits for."""
    made: list[Promise] = []

    def body(ctx: DurableContext) -> Any:
        made.append(ctx.promise("approval"))
        return ctx.select(approval=made[-1]).value

    deliver.suspends(body)
    return made[0]


def pending(lab: Lab, promise: Promise) -> bool:
    return lab.runtime.promises.look([promise.id]).rows[promise.id].pending


@pytest.mark.parametrize("by", ["input", "variable"])
@pytest.mark.parametrize("verb", ["resolve", "reject"])
def test_a_token_comes_from_where_nobody_else_reads(
    lab: Lab,
    command: Command,
    promise: Promise,
    by: str,
    verb: str,
) -> None:
    how: dict[str, Any] = {"typed": f"{promise.token}\n"} if by == "input" else {}
    env = {"CELERY_DURABLE_TOKEN": promise.token} if by == "variable" else {}
    args = ["--reason", "too dear"] if verb == "reject" else []
    args += ["--token", "-"] if by == "input" else []
    wrong: dict[str, Any] = {"typed": "nonsense\n"} if by == "input" else {}
    refused = command("promise", verb, promise.id, *args, env=dict.fromkeys(env, "nonsense"), fails=1, **wrong)
    assert "[CD604] there is no promise with this id and token." in refused.err
    assert pending(lab, promise)
    done = command("promise", verb, promise.id, *args, env=env, **how)
    assert done.out == f"Promise 'approval' ({promise.id}) is {verb.removesuffix('e')}ed.\n"
    assert not pending(lab, promise)
    assert promise.token not in done.out + done.err + refused.err


def test_an_empty_input_is_no_token(lab: Lab, command: Command, promise: Promise) -> None:
    refused = command("promise", "resolve", promise.id, "--token", "-", typed="", fails=1)
    assert "[CD604]" in refused.err
    assert pending(lab, promise)


def test_a_token_goes_before_the_variable(lab: Lab, command: Command, promise: Promise) -> None:
    env = {"CELERY_DURABLE_TOKEN": "of another promise"}
    command("promise", "resolve", promise.id, "--token", "-", typed=promise.token, env=env)
    assert not pending(lab, promise)


@pytest.mark.parametrize("verb", ["resolve", "reject"])
def test_force_settles_nothing_of_another_application(
    lab: Lab,
    command: Command,
    promise: Promise,
    verb: str,
) -> None:
    args = ["--force", *(["--reason", "too dear"] if verb == "reject" else [])]
    refused = command("promise", verb, promise.id, *args, namespace="another", fails=1)
    assert f"[CD604] there is no promise {promise.id!r} that could be settled" in refused.err
    assert pending(lab, promise)
    assert "there is no execution 'one'" in command("promise", "list", "one", namespace="another", fails=1).err
    command("promise", verb, promise.id, *args)
    assert not pending(lab, promise)


def test_no_other_command_reaches_another_application(lab: Lab, command: Command, promise: Promise) -> None:
    before = lab.execution()
    for args in (
        ("show", "one"),
        ("cancel", "one"),
        ("cancel", "one", "--no-undo"),
        ("resume", "one"),
        ("resolve", "one", "0", "--run"),
        ("rerun", "one", "--from-step", "approval"),
    ):
        assert "there is no execution 'one'" in command(*args, namespace="another", fails=1).err, args
    assert command("list", "--json", namespace="another").out == ""
    assert lab.execution() == before


# -- undoing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def journey(database: JournalDatabase, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """One that has reserved something, and is parked."""
    monkeypatch.setitem(os.environ, Ledger.ENV, str(ledger.path))
    app = build(database.conf)
    app.tasks["journey"].apply((1,), task_id="one")
    yield app
    Runtime.of(app).end()


def state(app: Celery) -> State:
    runtime = Runtime.of(app)
    return Operations(runtime.database, namespace=runtime.settings.namespace).get("one").state


@pytest.mark.parametrize("json", [False, True])
def test_no_undo_ends_it_at_once_and_gives_nothing_back(
    journey: Celery, database: JournalDatabase, ledger: Ledger, json: bool
) -> None:
    assert state(journey) is State.AMBIGUOUS
    env = {**conf_env(database.conf), **ledger.env}
    answer = run_process(APP, "cancel", "one", "--no-undo", *["--json"] * json, env=env)
    if json:
        assert answer.json == {"id": "one", "state": "cancelled", "was": "ambiguous", "result_backend_told": True}
    else:
        assert answer.out == "one was ambiguous, and is cancelled now.\n"
    assert state(journey) is State.CANCELLED
    # Nor does it later.
    journey.tasks["journey"].apply((1,), task_id="one")
    assert ledger.names() == ["reserve", "charge"]


def test_without_it_what_was_done_is_undone_first(journey: Celery, database: JournalDatabase, ledger: Ledger) -> None:
    env = {**conf_env(database.conf), **ledger.env}
    refused = run_process(APP, "resolve", "one", "1", "--fail", env=env)
    assert refused.code == 0
    answer = run_process(APP, "cancel", "one", env=env)
    assert answer.out.startswith("one was ")
    assert "undone" in answer.out
    assert ledger.count("release") == 0
    journey.tasks["journey"].apply((1,), task_id="one")
    assert ledger.names() == ["reserve", "charge", "release"]
    assert state(journey) is State.CANCELLED
