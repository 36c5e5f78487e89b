"""Celery's canvas, and its brokers' habits, around tasks that wait."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_durable.store.records import State
from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql")]


def test_what_follows_a_task_that_waits_follows_once(arena: Arena) -> None:
    def add(*numbers: int, id: str):  # noqa: A002
        return arena.client.signature(f"{APP}.add", numbers, task_id=id, app=arena.client)

    def total(id: str):  # noqa: A002
        return arena.client.signature(f"{APP}.total", task_id=id, app=arena.client)

    arena.worker(concurrency=2)
    plain = arena.client.signature(f"{APP}.plain", app=arena.client)
    results = {
        "chain": (chain(add(1, 2, id="c1"), add(3, id="c2"), add(4, id="c3")).apply_async(), 10),
        "chord": (chord([add(1, 2, id="h1"), add(3, 4, id="h2")], total("body")).apply_async(), 10),
        "group": (group(add(1, 1, id="g1"), add(2, 2, id="g2")).apply_async(), [2, 4]),
        "chord in a chain": (
            chain(add(1, 1, id="d1"), group(add(1, id="d2"), add(2, id="d3")), total("d4")).apply_async(),
            7,
        ),
        "link": (add(5, 5, id="l1").apply_async(link=plain), 10),
    }
    assert {name: result.get(timeout=60) for name, (result, _) in results.items()} == {
        name: expected for name, (_, expected) in results.items()
    }
    eventually(lambda: arena.ledger.count("plain", number=10))
    rows = arena.operations.find(limit=100)
    arena.await_settled([row.id for row in rows])
    arena.await_empty_broker()
    assert len(rows) == 13
    assert arena.ledger.count("after") == 13
    assert arena.ledger.count("plain") == 1


def test_a_caller_sees_that_it_is_suspended_and_goes_on_waiting(arena: Arena) -> None:
    arena.worker()
    arena.send("nap-1", "nap", 3600, "never")
    result = arena.result("nap-1")
    eventually(lambda: result.state == "SUSPENDED")
    assert result.info == {"waits_for": ["sleep"]}
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.5)
    arena.client.backend.remove_pending_result(result)
    arena.operations.cancel("nap-1", "the test is over")
    assert arena.row("nap-1").state is State.CANCELLED


def test_a_sleep_beyond_the_visibility_time_out_ends_once(arena: Arena) -> None:
    impatient = {"broker_transport_options": {**arena.broker.transport_options, "visibility_timeout": 1}}
    first = arena.worker(conf=impatient, name="first")
    arena.send("nap-1", "nap", 4, "rested")
    arena.await_suspended(1)
    # A worker that starts puts back what is overdue; nothing is.
    second = arena.worker(conf=impatient, name="second")
    assert arena.result("nap-1").get(timeout=60) == "rested"
    arena.await_settled(["nap-1"])
    assert (len(arena.fired("nap-1", "before")), len(arena.fired("nap-1", "after"))) == (1, 1)
    assert arena.row("nap-1").epoch == 2
    assert f"{first.log()}{second.log()}".count("nap[nap-1] received") == 2
