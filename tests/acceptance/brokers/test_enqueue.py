"""Messages of a transaction whose process is killed: before the commit they never existed, after it they arrive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from celery_durable.common.faults import FAULT_VARIABLE
from tests.support.conf import conf_env
from tests.support.wait import eventually

from .arena import LEASE, Arena
from .enqueuer import DURABLE, TOTAL, orders


def enqueue(arena: Arena, killed_at: str = "") -> set[int]:
    """Run the process that enqueues; the orders that are there after it."""
    engine = arena.database.engine()
    orders.create(engine)
    env = {
        **os.environ,
        **arena.ledger.env,
        **conf_env(arena.broker.conf, arena.database.conf, {"durable_lease_timeout": LEASE}),
        FAULT_VARIABLE: f"{killed_at}=kill" if killed_at else "",
    }
    process = subprocess.run([sys.executable, "-m", "tests.acceptance.brokers.enqueuer"], env=env, timeout=60)
    assert process.returncode == (-signal.SIGKILL if killed_at else 0)
    with engine.connect() as connection:
        return set(connection.execute(sa.select(orders.c.id)).scalars())


def expect_all(arena: Arena) -> None:
    """Everything that was enqueued is done: once, if it is durable."""
    arena.expect_once(DURABLE, "work")
    assert arena.result("body").get(timeout=30) == TOTAL
    eventually(lambda: arena.ledger.count("note"), 30)
    assert {row.id for row in arena.operations.find(limit=100)} == set(DURABLE)
    with arena.database.engine().connect() as connection:
        eventually(lambda: not connection.execute(sa.text("SELECT COUNT(*) FROM durable_outbox")).scalar_one(), 30)


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("redis", "filesystem")
def test_a_transaction_that_commits(arena: Arena) -> None:
    assert enqueue(arena) == {1}
    arena.worker(concurrency=2)
    expect_all(arena)
    assert arena.ledger.count("note") == 1


@pytest.mark.brokers("redis")
def test_a_process_that_dies_before_the_commit(arena: Arena) -> None:
    assert enqueue(arena, killed_at="enqueue.after_record") == set()
    assert arena.operations.find() == []
    with arena.broker.connect() as connection:
        assert connection.default_channel.client.llen(arena.broker.queue) == 0


@pytest.mark.brokers("redis")
def test_a_process_that_dies_between_the_commit_and_the_broker(arena: Arena) -> None:
    assert enqueue(arena, killed_at="enqueue.after_commit") == {1}
    arena.worker(concurrency=2)
    expect_all(arena)


@pytest.mark.databases("sqlite")
@pytest.mark.brokers("redis", "filesystem")
def test_a_broker_that_loses_what_was_sent(arena: Arena) -> None:
    """And everything that it knew of results and chords."""
    assert enqueue(arena, killed_at="enqueue.after_send") == {1}
    arena.broker.flush()
    arena.worker(concurrency=2)
    expect_all(arena)


@pytest.mark.brokers("redis")
@pytest.mark.parametrize(("killed_at", "notes"), [("outbox.after_claim", 1), ("outbox.after_send", 2)])
def test_a_service_that_dies_while_it_relays(arena: Arena, killed_at: str, notes: int) -> None:
    """What the broker has already is sent once more: done twice if it is not durable, and no harm if it is."""
    enqueue(arena, killed_at="enqueue.after_commit")
    # Its worker starts another one.
    file = arena.ledger.path.with_name("killed")
    arena.worker(concurrency=2, env={FAULT_VARIABLE: f"{killed_at}=kill:1:{file}"})
    expect_all(arena)
    assert file.exists()
    # The outbox is empty once the broker has the last message: its body may still be on its way.
    eventually(lambda: arena.ledger.count("note") >= notes, 30)
    assert arena.ledger.count("note") == notes
