"""A thousand executions asleep, and a thousand that wait for somebody: rows, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

import celery_durable
from celery_durable.store.records import State
from tests.acceptance.outage.servers import Fragile, on_each_server
from tests.support.delivery import elapse

from .arena import Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.timeout(400)]

MANY = 1000
HOUR = 3600
#: Many messages wait for two pool processes: they are not to be sent again meanwhile.
PATIENT = {"durable_lease_timeout": 60, "durable_recovery_interval": 0.2}
BULK = {"worker_prefetch_multiplier": 20}


@on_each_server
def test_they_wait_through_the_restart_of_everything_and_none_wakes_twice(fragile: Arena, server: Fragile) -> None:
    arena = fragile
    sleepers = [f"sleeper-{number}" for number in range(MANY)]
    waiters = [f"waiter-{number}" for number in range(MANY)]
    first = arena.worker(concurrency=2, conf=BULK, durable=PATIENT)
    for sleeper, waiter in zip(sleepers, waiters, strict=True):
        arena.send(waiter, "await_word")
        arena.send(sleeper, "snooze", HOUR)
    arena.await_suspended(2 * MANY, timeout=200)
    arena.await_empty_broker()

    first.crash()
    arena.broker.flush()
    server.crash()
    server.start()
    keys = {entry["execution"]: (entry["promise"], entry["token"]) for entry in arena.ledger.entries("asked")}
    # Half of the promises are kept while nobody could go on, whose messages are lost once more.
    for waiter in waiters[: MANY // 2]:
        celery_durable.resolve(*keys[waiter], waiter, app=arena.outside)
    arena.broker.flush()
    arena.worker(concurrency=2, conf=BULK, durable=PATIENT)
    for waiter in waiters[MANY // 2 :]:
        celery_durable.resolve(*keys[waiter], waiter, app=arena.outside)
    elapse(arena.database.engine(), HOUR)
    arena.await_settled([*sleepers, *waiters], timeout=200)

    assert Counter(entry["execution"] for entry in arena.ledger.entries("up")) == Counter([*sleepers, *waiters])
    rows = {row.id: row for row in arena.operations.find(limit=5000)}
    assert {(row.state, row.epoch, row.attempts) for row in rows.values()} == {(State.COMPLETED, 2, 0)}
    assert [arena.result(waiter).get(timeout=30) for waiter in waiters[:: MANY // 10]] == waiters[:: MANY // 10]
