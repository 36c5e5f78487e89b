"""RabbitMQ's quorum queues, and Celery's native delayed delivery: what was delayed is recovered from its own queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import celery
import pytest

from .arena import Arena

pytestmark = [
    pytest.mark.brokers("rabbitmq"),
    pytest.mark.databases("postgresql"),
    pytest.mark.skipif(
        tuple(map(int, celery.__version__.split(".")[:2])) < (5, 5),
        reason="Celery has no native delayed delivery before 5.5",
    ),
]

CONF: dict[str, Any] = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
    "broker_native_delayed_delivery_queue_type": "classic",
}


@pytest.fixture(autouse=True)
def delays(arena: Arena) -> Iterator[None]:
    """Celery makes queues for delays, which outlive it."""
    yield
    with arena.broker.connect() as connection:
        channel = connection.default_channel
        for level in range(28):
            channel.queue_delete(f"celery_delayed_{level}")
            channel.exchange_delete(f"celery_delayed_{level}")
        channel.exchange_delete("celery_delayed_delivery")


def test_a_delayed_message_is_sent_again_to_the_queue_it_was_meant_for(arena: Arena):
    special = arena.broker.another_queue("special")
    arena.client.conf.update(CONF)
    first = arena.worker(conf=CONF, queues=[special], concurrency=2)
    for execution, options in {"delayed": {"countdown": 1}, "direct": {}}.items():
        arena.client.send_task(f"{arena.app}.held", task_id=execution, queue=special, **options)
    arena.await_bodies(["delayed", "direct"])
    first.crash()
    # Recovery alone is to bring them back, to a worker that serves no other queue.
    with arena.broker.connect() as connection:
        connection.default_channel.queue_purge(special)
    arena.open_gate("release")
    arena.worker(conf=CONF, queues=[special], concurrency=2)
    assert arena.result("direct").get(timeout=60) == "released"
    assert arena.result("delayed").get(timeout=60) == "released"
    arena.expect_once(["delayed", "direct"], "work", "after")
