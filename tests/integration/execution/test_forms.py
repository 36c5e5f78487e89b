"""Whatever form a durable task has, the death of its process repeats nothing and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import celery
import pytest
from celery import Celery, states
from celery.result import AsyncResult

from celery_durable import UnknownExecution
from celery_durable.store import Database, Operations
from celery_durable.store.records import State
from tests.conftest import BROKERS, DATABASES, _use
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory, WorkerProcess

pytestmark = [pytest.mark.databases("sqlite"), pytest.mark.brokers("redis")]

APP = "tests.integration.execution.forms_app"

REQUEST = {
    "id": True,
    "args": [7],
    "kwargs": {},
    "retries": 0,
    "root": True,
    "note": "kept",
    "priority": 3,
    "correlation": True,
    "late": [True, True],
    "direct": [False, False],
}


@dataclass(frozen=True)
class Form:
    """How a task is sent, and what comes of it."""

    task: str
    result: Any = 7
    args: tuple[Any, ...] = (7,)
    kwargs: dict[str, Any] | None = None
    ships: int = 1
    #: Take-overs of the execution as it is in the end; a replacement begins at 0.
    attempts: int = 1


FORMS = {form.task: form for form in (
    Form("bound", 21, kwargs={"times": 3}),
    Form("unbound"),
    Form("shared"),
    Form("late"),
    Form("async"),
    Form("untyped", args=(3, 4)),
    Form("without_result", None),
    Form("early_ack"),
    Form("autoretry"),
    Form("retry", 9),
    Form("calling", 8),
    Form("request", REQUEST),
    Form("class_based"),
    Form("static"),
    Form("class_retry"),
    Form("derived", 16),
    Form("on_template", 14),
    Form("django"),
    Form("django_first"),
    Form("recursive"),
)}  # fmt: skip
REPLACED = {
    f"replaced by {by}": Form("replaced", result, (7, by), ships=ships, attempts=attempts)
    for by, result, ships, attempts in (
        ("durable", 70, 1, 0),
        ("chain", 90, 1, 0),
        ("chord", 160, 1, 0),
        ("plain", 8, 0, 1),
        ("group", [8, 9], 0, 1),
    )
}
FORMS |= REPLACED
if celery.VERSION >= (5, 5):
    FORMS["pydantic"] = Form("pydantic", {"weight": 7}, ({"amount": 7},))


class Shop:
    """A worker with all forms, each of which was sent once."""

    def __init__(self, client: Celery, worker: WorkerProcess, operations: Operations, ledger: Ledger) -> None:
        self.client = client
        self.worker = worker
        self.operations = operations
        self.ledger = ledger
        self.sent: dict[str, AsyncResult[Any]] = {
            name: client.send_task(form.task, form.args, form.kwargs or {}, headers={"note": "kept"}, priority=3)
            for name, form in FORMS.items()
        }


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JournalDatabase]:
    with _use(DATABASES, request.param).lend(tmp_path_factory.mktemp("database")) as lent:
        yield lent


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MessageBroker]:
    with _use(BROKERS, request.param).lend(tmp_path_factory.mktemp("broker")) as lent:
        yield lent


@pytest.fixture(scope="module")
def shop(database: JournalDatabase, broker: MessageBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("forms")
    factory, ledger = WorkerFactory(folder), Ledger(folder / "ledger.jsonl")
    client = Celery("client", set_as_current=False)
    client.conf.update(broker.conf)
    # Every take-over is one of a process that is seen to die: leases do not run out.
    durable = {"durable_lease_timeout": 300, "durable_recovery_interval": 0.2, "worker_prefetch_multiplier": 1}
    worker = factory(APP, broker.conf, database.conf, durable, env=ledger.env, concurrency=2)
    store = Database(database.url, timeout=30)
    yield Shop(client, worker, Operations(store, namespace="forms"), ledger)
    factory.end()
    store.dispose()
    client.close()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_survives_the_death_of_its_process(shop: Shop, name: str) -> None:
    form, sent = FORMS[name], shop.sent[name]
    if name == "without_result":
        eventually(lambda: shop.operations.get(sent.id).state is State.COMPLETED, 60, ignore=(UnknownExecution,))
        assert sent.state == states.PENDING
    else:
        assert sent.get(timeout=60) == form.result
    row = shop.operations.get(sent.id)
    assert (row.state, row.attempts) == (State.COMPLETED, form.attempts)
    fired = {effect: shop.ledger.count(effect, execution=sent.id) for effect in ("charge", "died", "ship")}
    assert fired == {"charge": 1, "died": 1, "ship": form.ships}


def test_a_task_that_replaces_itself_does_the_steps_of_each_round_once(shop: Shop) -> None:
    sent = shop.sent["recursive"]
    assert sent.get(timeout=60) == 7
    assert shop.ledger.count("round", execution=sent.id) == 3


def test_a_task_that_replaces_itself_by_way_of_another_task_begins_anew(shop: Shop) -> None:
    sent = shop.client.send_task("replaced", (7, "itself"))
    assert sent.get(timeout=60) == 9
    assert shop.ledger.count("charge", execution=sent.id) == 2


@pytest.mark.parametrize("name", REPLACED)
def test_a_late_duplicate_of_a_task_that_was_replaced_is_dropped(shop: Shop, name: str) -> None:
    form, sent = FORMS[name], shop.sent[name]
    sent.get(timeout=60)
    shop.client.send_task(form.task, form.args, task_id=sent.id, headers={"note": "late"})
    why = "it belongs to an earlier attempt" if form.attempts == 0 else "it has ended"
    shop.worker.await_log(f"a message of replaced[{sent.id}] is dropped: {why} (state completed)")
    assert shop.ledger.count("charge", execution=sent.id) == 1
    assert sent.get(timeout=60) == form.result


def test_hooks_of_a_class_run(shop: Shop) -> None:
    for name in ("derived", "on_template"):
        sent = shop.sent[name]
        sent.get(timeout=60)
        eventually(lambda sent=sent: shop.ledger.count("on_success", execution=sent.id), 30)
        # For the start that died, for the one that did not, and for every duplicate that was dropped.
        assert shop.ledger.count("before_start", execution=sent.id) >= 2


def test_who_asks_for_an_early_acknowledgement_is_told(shop: Shop) -> None:
    for option in ("acks_late", "reject_on_worker_lost"):
        assert (
            f"early_ack: {option}=False is ignored; a durable task acknowledges late and is requeued when its worker "
            "is lost"
        ) in shop.worker.log()
