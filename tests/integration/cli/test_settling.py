"""What an operator decides, carried out by a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord
from celery.exceptions import ChordError, TaskRevokedError

from celery_durable import AmbiguousEffect
from celery_durable.runtime import Runtime
from tests.support.brokers import MessageBroker
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory, WorkerProcess

from .cli_app import build

APP = "tests.integration.cli.cli_app"
QUICK = {"durable_lease_timeout": 8, "durable_recovery_interval": 0.2}


@pytest.fixture
def app(broker: MessageBroker, database: JournalDatabase) -> Iterator[Celery]:
    """The application as its callers and its operator have it: in this process, which runs no bodies."""
    app = build(broker.conf, database.conf, QUICK)
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()
    app.close()


@pytest.fixture
def worker(
    app: Celery, broker: MessageBroker, database: JournalDatabase, workers: WorkerFactory, ledger: Ledger
) -> WorkerProcess:
    return workers(APP, broker.conf, database.conf, conf=QUICK, env=ledger.env, pool="solo")


def send(app: Celery, task: str, task_id: str, *args: Any) -> Any:
    return app.tasks[task].apply_async(args, task_id=task_id)


def listed(app: Celery) -> dict[str, str]:
    return {row["id"]: row["state"] for row in run(app, "list", "--json").rows}


def await_states(app: Celery, **states: str) -> None:
    wanted = {name.replace("_", "-"): state for name, state in states.items()}
    eventually(lambda: wanted.items() <= listed(app).items(), 60, f"wanted {wanted}, last seen {listed(app)}")


@pytest.mark.brokers("filesystem")
def test_parked_executions_go_on_as_the_operator_says(app: Celery, worker: WorkerProcess, ledger: Ledger):
    """One story for one worker: the steps were left open by an exception that may hide a success."""
    value, rerun, failed = (send(app, "order", f"order-{n}", n) for n in (1, 2, 3))
    retried = send(app, "retried_order", "order-4", 4)
    pair = send(app, "pair", "pair-1", 5, 6)
    cancelled = send(app, "order", "order-7", 7)
    parked = dict.fromkeys(["order_1", "order_2", "order_3", "order_4", "pair_1", "order_7"], "ambiguous")
    await_states(app, **parked)

    # It was done: the value is of the type that the step's function returns.
    answer = run(app, "resolve", "order-1", "1", "--value", '{"id": "r1", "total": "41.5"}', "--note", "asked the bank")
    assert answer.out == (
        "Step 'charge' at position 1 of order-1: done, with a value (tests.integration.cli.cli_app.Receipt).\n"
        "It continues as soon as a worker is free.\n"
    )
    assert value.get(timeout=60) == ["r1", "42.5"]

    # It was not: the operation runs once more.
    assert run(app, "resolve", "order-2", "--run", "--json").json == {
        "id": "order-2", "position": "1", "name": "charge", "decision": "run", "state": "pending", "remaining": [],
    }  # fmt: skip
    assert rerun.get(timeout=60) == ["r2", "10.99"]

    # It failed: the body gets an error, which nothing tries again, not even autoretry_for=(Exception,).
    run(app, "resolve", "order-3", "1", "--fail")
    with pytest.raises(AmbiguousEffect) as caught:
        failed.get(timeout=60)
    assert str(caught.value) == (
        "[CD302] step 'charge' (position 1) of execution order-3 was in doubt; an operator decided that it failed."
    )
    run(app, "resolve", "order-4", "0", "--fail", "card was stolen")
    with pytest.raises(AmbiguousEffect, match="card was stolen"):
        retried.get(timeout=60)

    # Two steps in doubt: nothing goes on before both are settled.
    first = run(app, "resolve", "pair-1", "0.2/0", "--run")
    assert first.out == (
        "Step 'charge' at position 0.2/0 of pair-1: run it.\n"
        "Still in doubt: 0.1/0 (charge). The execution continues when they are settled too.\n"
    )
    assert listed(app)["pair-1"] == "ambiguous"
    shown = run(app, "show", "pair-1").text
    assert "why         step 'charge' (position 0.1/0): its operation raised GatewayTimeout" in shown
    assert shown.count("waits for you") == 1
    run(app, "resolve", "pair-1", "--value", '{"id": "r5", "total": 1}')
    assert pair.get(timeout=60) == ["r5", "r6"]
    assert worker.log().count("pair[pair-1] is parked") == 1

    # Nobody waits for a cancelled one any more.
    assert run(app, "cancel", "order-7", "--reason", "customer left").out == (
        "order-7 was ambiguous, and is cancelled now.\n"
    )
    with pytest.raises(TaskRevokedError, match="customer left"):
        cancelled.get(timeout=60)
    assert run(app, "cancel", "order-7", fails=1).err == (
        "Error: [CD004] execution order-7 is cancelled already; there is nothing to cancel.\n"
    )

    await_states(app, order_1="completed", order_2="completed", order_3="failed", order_4="failed", pair_1="completed")
    fired = {n: ledger.count("charge", order=n) for n in range(1, 8)}
    assert fired == {1: 1, 2: 2, 3: 1, 4: 1, 5: 1, 6: 2, 7: 1}
    assert ledger.count("load") == 4, "an idempotent step was done again"
    assert run(app, "show", "order-4", "--json").json["retries"] == 0
    steps = {e: run(app, "show", e, "--json").json["steps"] for e in ("order-1", "order-2", "order-3")}
    assert {e: s[1]["outcome"] for e, s in steps.items()} == {"order-1": "done", "order-2": "done", "order-3": "failed"}
    texts = [e["text"] for e in steps["order-1"][1]["history"] if e["text"]]
    assert texts[0] == "left to an operator; raised: GatewayTimeout"
    assert texts[1].endswith("decided: done, with a value (tests.integration.cli.cli_app.Receipt): asked the bank")
    assert {r["id"]: r["steps"] for r in run(app, "list", "--json").rows if r["id"] in steps} == {
        "order-1": 2, "order-2": 2, "order-3": 2,
    }  # fmt: skip


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("redis")
def test_failed_and_running_executions(app: Celery, worker: WorkerProcess, ledger: Ledger):
    """A failed one goes on where it stopped; a running one is fenced off; a chord hears of a cancelled member."""
    failing = send(app, "flaky", "flaky-1", 1)
    with pytest.raises(ValueError, match="not yet"):
        failing.get(timeout=60)
    assert run(app, "resume", "flaky-1").out == "flaky-1 was failed. It continues as soon as a worker is free.\n"
    # (A result object remembers what it was told; a new one asks again.)
    eventually(lambda: app.AsyncResult("flaky-1").state == "SUCCESS", 60)
    assert app.AsyncResult("flaky-1").get(timeout=60) == "done"
    assert (ledger.count("before"), ledger.count("after")) == (1, 2)

    running = send(app, "slow", "slow-1")
    eventually(lambda: ledger.count("slow") == 1 and "slow-1" in listed(app), 60)
    assert run(app, "cancel", "slow-1").out == (
        "slow-1 was running, and is cancelled now.\n"
        "Its worker notices at its next commit; the operation that runs now is not interrupted.\n"
    )
    with pytest.raises(TaskRevokedError):
        running.get(timeout=60)
    ledger.fire("go on")
    worker.await_log("Task slow[slow-1] ignored")
    assert listed(app)["slow-1"] == "cancelled"
    assert ledger.count("charge", order=8) == 0, "a guarded step was started after the cancellation"

    members = [app.tasks["nothing"].s(1), app.tasks["order"].s(9).set(task_id="member-1")]
    result = chord(members, app=app)(app.tasks["total"].s())
    await_states(app, member_1="ambiguous")
    run(app, "cancel", "member-1")
    with pytest.raises(ChordError, match=r"Dependency member-1 raised TaskRevokedError"):
        app.AsyncResult(result.id).get(timeout=60)
    result.forget()


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("memory")
def test_what_the_result_backend_did_not_hear_it_is_told_later(app: Celery, monkeypatch: pytest.MonkeyPatch):
    app.tasks["order"].apply((1,), task_id="order-1")
    backend = type(app.backend)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "mark_as_revoked", refuse)
        answer = run(app, "cancel", "order-1")
        assert answer.out == "order-1 was ambiguous, and is cancelled now.\n"
        assert answer.err == (
            "The result backend was not notified (ConnectionError: no route to host), so AsyncResult.get() keeps "
            "waiting. Cancel it once more.\n"
        )
    assert app.AsyncResult("order-1").state == "PENDING"
    again = run(app, "cancel", "order-1")
    assert again.out == "order-1 was cancelled already; the result backend is notified now.\n"
    assert app.AsyncResult("order-1").state == "REVOKED"


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("memory")
def test_an_execution_that_ran_eagerly_has_no_message_to_send(app: Celery):
    app.tasks["order"].apply((1,), task_id="order-1")
    answer = run(app, "resume", "order-1")
    assert answer.out == (
        "order-1 was ambiguous. It ran eagerly, so no worker has its message: call the task again with "
        "task_id='order-1'.\n"
    )
    assert answer.err == (
        "Still in doubt: 1 (charge). The policy of each decides again; where it cannot, the execution is parked again. "
        "To settle one: celery durable resolve order-1\n"
    )
    assert run(app, "list", "--json").rows[0]["wake_at"] is None


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("memory")
def test_a_value_whose_type_is_unknown_is_stored_as_it_is(app: Celery):
    app.tasks["inline"].apply(task_id="inline-1")
    answer = run(app, "resolve", "inline-1", "--value", '{"id": "x"}')
    assert answer.err == (
        "Note: this command does not know what step 'send' returns, so the value is stored as plain JSON. If the body "
        "expects an object, name its class: --as module:Class\n"
    )
    assert app.tasks["inline"].apply(task_id="inline-1").result == "a dict"

    app.tasks["inline"].apply(task_id="inline-2")
    given = run(app, "resolve", "inline-2", "--value", '{"id": "x", "total": 1}', "--as", f"{APP}:Receipt")
    assert (given.err, f"a value ({APP}.Receipt)" in given.out) == ("", True)
    assert app.tasks["inline"].apply(task_id="inline-2").result == "a Receipt"

    app.tasks["inline"].apply(task_id="inline-3")
    assert run(app, "resolve", "inline-3", "--value", "null", "--as", "json").err == ""
    assert app.tasks["inline"].apply(task_id="inline-3").result == "a NoneType"
