"""Durable tasks in a Django project: its settings, its fix-ups for workers, and its tasks that wait for a commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celery_durable.store import Database, Operations
from tests.support.brokers import MessageBroker
from tests.support.conf import conf_env
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory

APP = "tests.integration.execution.django_app"


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("redis")
def test_tasks_of_a_django_project_are_sent_at_the_commit_and_survive_their_process(
    database: JournalDatabase, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> None:
    env = {
        **ledger.env,
        "DJANGO_SETTINGS_MODULE": "tests.integration.execution.django_settings",
        "DURABLE_TEST_DJANGO_DB": str(tmp_path / "django.db"),
    }
    durable = {"durable_lease_timeout": 300, "durable_recovery_interval": 0.2, "durable_outbox": True}
    confs = [broker.conf, database.conf, durable]
    # What is sent is recorded before: nothing has to be waited for to know that it was not.
    subprocess.run([sys.executable, "-m", APP], env={**os.environ, **env, **conf_env(*confs)}, check=True, timeout=60)
    store = Database(database.url, timeout=30)
    operations = Operations(store, namespace="shop")
    assert sorted(row.task for row in operations.find()) == ["fulfil", "fulfil", "shared"]
    assert ledger.names() == ["committing"]

    workers(APP, *confs, env=env, concurrency=1)
    eventually(lambda: ledger.count("done") == 2 and ledger.count("charge", order="last"), 60)
    assert {order: ledger.count("charge", order=order) for order in ("committed", "nested", "last", "rolled back")} == {
        "committed": 1,
        "nested": 1,
        "last": 1,
        "rolled back": 0,
    }
    assert ledger.count("died") == 2
    eventually(lambda: {str(row.state) for row in operations.find()} == {"completed"}, 60)
    store.dispose()
