"""An outcome is told when the result backend has it and what follows was sent; whichever of the two is away at a body's
end, callers hear of it at last, and what follows runs once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, states

from tests.support.servers import OwnRedis
from tests.support.worker import WorkerProcess

from .arena import APP, Arena

pytestmark = [pytest.mark.databases("postgresql"), pytest.mark.brokers("redis")]

#: Nobody waits for long for a server that is away.
HASTY: dict[str, Any] = {
    "redis_socket_connect_timeout": 1,
    "broker_connection_timeout": 1,
    "result_backend_transport_options": {
        "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    },
}
pools = pytest.mark.parametrize("pool", ["prefork", "threads"])


class Servers:
    """A broker and a result backend that may go away, each by itself; they forget everything then."""

    def __init__(self) -> None:
        self.broker, self.backend = OwnRedis(), OwnRedis()
        self.broker.start()
        self.backend.start()
        self.conf = {
            **HASTY,
            "broker_url": f"redis://127.0.0.1:{self.broker.port}/0",
            "result_backend": f"redis://127.0.0.1:{self.backend.port}/0",
            "broker_transport_options": {},
        }

    def remove(self) -> None:
        self.broker.remove()
        self.backend.remove()


@pytest.fixture
def servers() -> Iterator[Servers]:
    both = Servers()
    yield both
    both.remove()


def begin(arena: Arena, servers: Servers, pool: str) -> WorkerProcess:
    """A worker that has begun two bodies: one has a chain behind it, and one a callback for its failure."""
    arena.client.conf.update(servers.conf)
    worker = arena.worker(conf=servers.conf, pool=pool, concurrency=2)
    signature = arena.client.signature
    chain(
        signature(f"{APP}.held", task_id="one", app=arena.client),
        signature(f"{APP}.count", task_id="one-next", app=arena.client),
    ).apply_async()
    signature(f"{APP}.held_refusal", app=arena.client).apply_async(
        task_id="two", link_error=signature(f"{APP}.complain", task_id="two-error", app=arena.client)
    )
    arena.await_bodies(["one", "two"])
    return worker


def expect_told(arena: Arena) -> None:
    """Everybody has heard of everything, and everything happened once."""
    executions = ["one", "one-next", "two", "two-error"]
    arena.await_settled(executions)
    assert arena.result("one").get(timeout=60) == "released"
    assert arena.result("one-next").get(timeout=60) == len("released")
    with pytest.raises(ValueError, match="refused"):
        arena.result("two").get(timeout=60)
    assert [arena.row(one).state for one in executions] == ["completed", "completed", "failed", "completed"]
    assert [arena.ledger.count("work", execution=one) for one in executions] == [1, 1, 1, 1]
    assert [arena.ledger.count("body", execution=one) for one in ("one", "two")] == [1, 1]
    assert arena.ledger.count("after", execution="one") == 1
    assert arena.result("one").state == states.SUCCESS
    assert arena.result("two").state == states.FAILURE


@pools
def test_a_result_backend_that_was_away_is_told_later(arena: Arena, servers: Servers, pool: str):
    worker = begin(arena, servers, pool)
    servers.backend.stop()
    arena.open_gate("release")
    worker.await_log("the outcome of one could not be passed on to Celery", 60)
    worker.await_log("the outcome of two could not be passed on to Celery", 60)
    # It is asked before anything is sent once more.
    worker.await_log("[one] has ended; its outcome is passed on when the result backend answers", 60)
    servers.backend.start()
    expect_told(arena)


@pools
def test_a_chain_goes_on_when_the_broker_is_back(arena: Arena, servers: Servers, pool: str):
    worker = begin(arena, servers, pool)
    servers.broker.stop()
    arena.open_gate("release")
    worker.await_log("the outcome of one could not be passed on to Celery", 60)
    worker.await_log("the outcome of two could not be passed on to Celery", 60)
    assert arena.result("one").state != states.SUCCESS, "it would be taken for told"
    # A worker whose broker was away may need a while to consume again; another one does so at once.
    worker.crash()
    servers.broker.start()
    arena.worker(conf=servers.conf, pool=pool, concurrency=2)
    expect_told(arena)
