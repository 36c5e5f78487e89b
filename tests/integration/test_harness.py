"""The harness against the real thing: databases, brokers and worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from queue import Empty
from typing import Any

import kombu
import psutil
import pytest
import sqlalchemy as sa
from celery import Celery

from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory

APP = "tests.integration.harness_app"


def test_a_database_is_empty_and_holds_any_text(database: JournalDatabase):
    engine = database.engine()
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x VARCHAR(20))")
        connection.execute(sa.text("INSERT INTO t VALUES (:x)"), {"x": "žluťoučký 🐎"})
        assert connection.execute(sa.text("SELECT x FROM t")).scalar_one() == "žluťoučký 🐎"


@pytest.fixture
def left_open() -> Iterator[list[sa.Connection]]:
    """Connections that outlive the database, for this fixture ends after that one where a test names it first."""
    connections: list[sa.Connection] = []
    yield connections
    for connection in connections:
        connection.invalidate()
        connection.close()


def test_a_database_can_be_dropped_while_somebody_holds_a_transaction(
    left_open: list[sa.Connection], database: JournalDatabase
):
    connection = sa.create_engine(database.url, poolclass=sa.pool.NullPool).connect()
    left_open.append(connection)
    connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    connection.exec_driver_sql("SELECT * FROM t")


def test_a_real_worker_takes_a_task_from_the_broker(
    broker: MessageBroker, client: Celery, workers: WorkerFactory, ledger: Ledger
):
    worker = workers(APP, broker.conf, env=ledger.env)
    assert client.send_task("tests.integration.harness_app.add", (2, 3)).get(timeout=30) == 5
    assert ledger.count("add", a=2, b=3) == 1
    assert worker.stop() == 0


def test_a_flushed_broker_forgets_its_messages(
    broker: MessageBroker, client: Celery, workers: WorkerFactory, ledger: Ledger
):
    client.send_task("tests.integration.harness_app.add", (1, 1))
    broker.flush()
    client.send_task("tests.integration.harness_app.add", (2, 2))
    workers(APP, broker.conf, env=ledger.env)
    eventually(lambda: ledger.count("add"), message="the second message was lost too")
    assert ledger.entries()[0]["a"] == 2


def send_numbers(conf: dict[str, Any], count: int) -> None:
    """Runs in a process of its own, with pauses in which the consumer catches up and waits."""
    connection = kombu.Connection(
        conf["broker_url"], transport=conf["broker_transport"], transport_options=conf["broker_transport_options"]
    )
    with connection, connection.channel() as channel:
        for number in range(count):
            channel._put(conf["task_default_queue"], {"number": number})
            time.sleep(0.0005)


@pytest.mark.brokers("filesystem")
def test_a_message_in_a_folder_appears_whole(broker: MessageBroker):
    """A consumer that waits for each of them never takes one that is still being written."""
    sender = multiprocessing.get_context("spawn").Process(target=send_numbers, args=(broker.conf, 1_000))
    sender.start()
    with broker.connect() as connection, connection.channel() as channel:
        taken: list[int] = []
        while len(taken) < 1_000:
            try:
                taken.append(channel._get(broker.queue)["number"])
            except Empty:
                assert sender.is_alive() or sender.exitcode == 0
    sender.join()
    assert sorted(taken) == list(range(1_000))


@pytest.mark.brokers("filesystem")
def test_workers_are_paused_killed_and_crashed(
    broker: MessageBroker, client: Celery, workers: WorkerFactory, ledger: Ledger
):
    first = workers(APP, broker.conf, env=ledger.env)
    client.send_task("tests.integration.harness_app.hang")
    (entry,) = eventually(lambda: ledger.entries("hang"))
    assert entry["parent"] == first.pid

    first.pause()
    eventually(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
    first.resume()
    assert first.kill_child() == entry["pid"]
    first.await_log("signal 9 (SIGKILL)")
    children = eventually(first.children)

    first.crash()
    eventually(lambda: not any(map(psutil.pid_exists, children)), message="children outlived the crash")
    assert first.wait() == -signal.SIGKILL


@pytest.mark.brokers("redis")
def test_a_redis_of_our_own_can_be_stopped_and_started(broker: MessageBroker, client: Celery):
    if broker.server is None:
        pytest.skip("this Redis is not ours")
    broker.server.stop()
    with pytest.raises(kombu.exceptions.OperationalError), broker.connect() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
    broker.server.start()
    client.send_task("nobody.runs.this")


def test_a_worker_that_cannot_start_shows_its_log(workers: WorkerFactory):
    with pytest.raises(AssertionError, match=r"tests\.integration\.no_such_app was not found"):
        workers("tests.integration.no_such_app")
