"""A worker dies with messages in its hands; brokers differ in what becomes of those."""

from __future__ import annotations

import pytest

from tests.support.line import line
from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("filesystem", "redis", "rabbitmq"), pytest.mark.databases("sqlite")]

ORDERS = [f"held-{number}" for number in range(8)]
#: Bodies that run when the worker dies; it has received more.
RUNNING = 2


def test_all_that_a_lost_worker_had_is_done_once(arena: Arena):
    """RabbitMQ gives back what it had received; the file system has forgotten it, which is why the outbox is on there;
    Redis would give it back after the visibility timeout, for which nobody waits here.
    """
    settings = {"durable_outbox": True} if arena.broker.kind == "redis" else {}
    held = arena.publisher(**settings).tasks[f"{APP}.held"]
    prefetch = {"worker_prefetch_multiplier": 2, **settings}
    worker = arena.worker(conf=prefetch, concurrency=RUNNING)
    for order in ORDERS:
        held.apply_async(task_id=order)
    eventually(lambda: arena.ledger.count("body") == RUNNING)
    arena.await_started([entry["execution"] for entry in arena.ledger.entries("body")])
    eventually(lambda: worker.log().count("received") > RUNNING)
    worker.crash()

    arena.worker(conf=prefetch, concurrency=RUNNING)
    arena.open_gate("release")
    arena.expect_once(ORDERS, "work", "after")
    for order in ORDERS:
        assert eventually(lambda one=order: arena.result(one).state == "SUCCESS", 60)
        assert arena.result(order).get(timeout=30) == "released"
    # Those that ran had begun a second time; the others only now.
    bodies = [entry["execution"] for entry in arena.ledger.entries("body")]
    assert len(bodies) == len(ORDERS) + RUNNING


@pytest.mark.brokers("rabbitmq")
def test_a_redelivered_message_of_a_live_execution_is_dropped(arena: Arena):
    """Only the connection to the broker is lost: it gives the message to another worker, while the body goes on."""
    with line(arena.broker.url) as wire:
        arena.worker(name="first", conf={"broker_url": wire.url})
        arena.send("held-1", "held")
        arena.await_bodies(["held-1"])
        second = arena.worker(name="second")
        assert wire.cut()
        second.await_log("held[held-1] is dropped: another owner runs it")
        arena.open_gate("release")
        arena.expect_once(["held-1"], "work", "after", "body")
    assert arena.row("held-1").epoch == 1
