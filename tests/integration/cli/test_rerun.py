"""``celery durable rerun``, carried out by a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

import celery_durable
from celery_durable.runtime import Runtime
from tests.support.brokers import MessageBroker
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.worker import WorkerFactory

from .cli_app import build

pytestmark = [pytest.mark.databases("sqlite"), pytest.mark.brokers("filesystem")]

APP = "tests.integration.cli.cli_app"
QUICK = {"durable_lease_timeout": 2, "durable_recovery_interval": 0.2}


@pytest.fixture
def app(broker: MessageBroker, database: JournalDatabase) -> Iterator[Celery]:
    app = build(broker.conf, database.conf, QUICK)
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()
    app.close()


def test_an_execution_is_run_anew_from_a_step(
    app: Celery, broker: MessageBroker, database: JournalDatabase, workers: WorkerFactory, ledger: Ledger
):
    workers(APP, broker.conf, database.conf, conf=QUICK, env=ledger.env, pool="solo")
    app.tasks["flaky"].apply_async((1,), durable_id="f1")
    with pytest.raises(ValueError, match="not yet"):
        celery_durable.get("f1", app).result(timeout=60)

    said = run(app, "rerun", "f1", "--from-step", "1", "--id", "f2")
    assert said.out == ("f2 does the work of f1 again, as soon as a worker is free.\n  celery durable show f2\n")
    assert celery_durable.get("f2", app).result(timeout=60) == "done"
    # By its name too; and the same command starts it once.
    for _ in range(2):
        answer = run(app, "rerun", "f2", "--from-step", "after", "--id", "f3", "--no-callbacks", "--json").json
        assert answer == {"id": "f3", "rerun_of": "f2"}
    assert celery_durable.get("f3", app).result(timeout=60) == "done"
    assert (ledger.count("before"), ledger.count("after")) == (1, 3)

    new = run(app, "rerun", "f3", "--json").json["id"]
    assert celery_durable.get(new, app).result(timeout=60) == "done"
    assert ledger.count("before") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none",), "[CD003] there is no execution 'none' in namespace 'clitest'"),
        (("e1", "--from-step", "nothing"), "[CD004] execution e1 ran eagerly"),
        (("f1", "--from-step", "nothing"), "[CD004] execution f1 is pending; only one that has ended"),
        (("f1", "--id", ""), "[CD001] durable_id is empty"),
    ],
)
def test_what_cannot_be_run_anew_is_refused(app: Celery, args: tuple[str, ...], message: str):
    app.tasks["nothing"].apply((1,), task_id="e1")
    app.tasks["flaky"].apply_async((1,), durable_id="f1")
    answer = run(app, "rerun", *args, fails=1)
    assert answer.err.startswith(f"Error: {message}")
