"""Orders that nobody has begun when their message is lost: what the outbox keeps of them, and what is without it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import kombu
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_durable import DurableTask
from celery_durable.errors import UnknownExecution
from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = pytest.mark.databases("sqlite")


def now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


@pytest.fixture
def publisher(arena: Arena) -> Celery:
    """An application with the outbox."""
    app = arena.publisher(durable_outbox=True)

    def elsewhere(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this process only publishes")

    app.task(elsewhere, base=DurableTask, name=f"{APP}.mirror", shared=False)
    return app


def mirrored(arena: Arena) -> dict[str, Any]:
    """What the body sees, once it runs."""
    arena.open_gate("release")
    arena.expect_once(["mirror-1"], "work")
    [entry] = arena.ledger.entries("mirror", execution="mirror-1")
    seen: dict[str, Any] = entry["seen"]
    return seen


@pytest.mark.brokers("redis", "rabbitmq")
def test_the_outbox_keeps_what_an_order_was_published_with(arena: Arena, publisher: Celery):
    other = arena.broker.another_queue("other")
    expires = now() + dt.timedelta(hours=1)
    publisher.tasks[f"{APP}.mirror"].apply_async(
        (1,), task_id="mirror-1", queue=other, priority=7, expires=expires, headers={"tenant-name": "acme"},
        time_limit=500, soft_time_limit=400, shadow="a shadow", compression="zlib",
    )  # fmt: skip
    # A queue is declared by who publishes; now its message is gone.
    arena.broker.flush()
    arena.worker(queues=[arena.broker.queue, other])
    seen = mirrored(arena)
    assert expires.isoformat() in seen["expires"]
    assert (seen["routing_key"], seen["priority"]) == (other, 7)
    assert (seen["timelimit"], seen["shadow"]) == ("[500, 400]", "'a shadow'")
    assert "'tenant-name': 'acme'" in seen["headers"]


@pytest.fixture
def bound(arena: Arena) -> tuple[str, str]:
    """A queue that is bound to an exchange under ``the-key`` alone, and that exchange: no other way leads there."""
    queue = arena.broker.another_queue("bound")
    exchange = kombu.Exchange(f"{queue}-exchange", type="direct", durable=False, auto_delete=True)
    with arena.broker.connect() as connection:
        kombu.Queue(queue, exchange, "the-key")(connection.default_channel).declare()
    return queue, str(exchange.name)


@pytest.mark.brokers("rabbitmq")
def test_the_outbox_keeps_an_exchange_and_a_routing_key(arena: Arena, publisher: Celery, bound: tuple[str, str]):
    queue, exchange = bound
    mirror = publisher.tasks[f"{APP}.mirror"]
    mirror.apply_async((1,), task_id="mirror-1", exchange=exchange, routing_key="the-key")
    arena.broker.flush()
    arena.worker(queues=[queue])
    assert mirrored(arena)["routing_key"] == "the-key"


@pytest.mark.brokers("rabbitmq")
def test_a_take_over_keeps_an_exchange_and_a_routing_key(arena: Arena, bound: tuple[str, str]):
    """Here without the outbox: the message is stored as it was received."""
    queue, exchange = bound
    arena.client.send_task(f"{APP}.mirror", (1,), task_id="mirror-1", exchange=exchange, routing_key="the-key")
    first = arena.worker(queues=[queue])
    eventually(lambda: arena.ledger.count("mirror", execution="mirror-1") == 1)
    arena.await_started(["mirror-1"])
    first.crash()
    second = arena.worker(queues=[queue])
    second.await_log("mirror[mirror-1] (running) is sent again")
    eventually(lambda: arena.ledger.count("mirror", execution="mirror-1") == 2)
    arena.open_gate("release")
    arena.expect_once(["mirror-1"], "work")
    assert [entry["seen"]["routing_key"] for entry in arena.ledger.entries("mirror")] == ["the-key"] * 2


@pytest.mark.brokers("redis")
def test_an_order_that_expired_before_anybody_began_it_is_cancelled(arena: Arena, publisher: Celery):
    expires = now() + dt.timedelta(seconds=1)
    publisher.tasks[f"{APP}.add"].apply_async((1,), task_id="add-1", expires=expires)
    arena.broker.flush()
    eventually(lambda: now() > expires)
    arena.worker()
    arena.await_settled(["add-1"])
    assert arena.row("add-1").state is State.CANCELLED
    assert arena.ledger.count("work") == 0


@pytest.mark.brokers("redis")
def test_on_redis_without_the_outbox_an_order_that_was_only_received_waits_for_the_visibility_time_out(arena: Arena):
    orders = ["held-0", "held-1"]
    worker = arena.worker(concurrency=1, conf={"worker_prefetch_multiplier": 2})
    for order in orders:
        arena.send(order, "held")
    worker.await_log("held[held-1] received")
    arena.await_bodies(["held-0"])
    worker.crash()

    arena.open_gate("release")
    second = arena.worker()
    arena.expect_once(["held-0"], "work", "after")
    # What had begun is done. Of the other there is no trace but with Redis, which keeps it for the dead.
    with pytest.raises(UnknownExecution):
        arena.row("held-1")
    with arena.broker.connect() as connection:
        kept = [value.decode() for value in connection.default_channel.client.hvals("unacked")]
    assert any("held-1" in message for message in kept)
    second.crash()

    impatient = {**arena.broker.transport_options, "visibility_timeout": 1}
    arena.worker(conf={"broker_transport_options": impatient})
    arena.expect_once(orders, "work", "after")


@pytest.mark.brokers("redis")
def test_publishing_fails_and_accepts_nothing_while_the_result_backend_is_down(arena: Arena):
    """Celery asks a result backend on Redis before it hands the message over, so that the outbox is not reached."""
    if arena.broker.server is None:
        pytest.skip("this Redis belongs to somebody else and cannot be stopped")
    once = {**arena.broker.result_backend_transport_options, "retry_policy": {"max_retries": 0}}
    publisher = arena.publisher(durable_outbox=True, result_backend_transport_options=once)
    arena.broker.server.stop()
    # How Celery calls it depends on its version.
    with pytest.raises((RuntimeError, OperationalError), match=r"result store|[Cc]onnect"):
        publisher.tasks[f"{APP}.held"].apply_async(task_id="held-1")
    arena.broker.server.start()
    assert arena.operations.find(limit=10) == []
