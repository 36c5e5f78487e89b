"""Hundreds of greenlets on one worker, and a database that answers after some milliseconds: all get done.

``DURABLE_TEST_GREENLETS=2000`` asks for the full size: so many executions, on a pool of 500 greenlets.
"""

from __future__ import annotations

import os

import pytest
import sqlalchemy as sa

from celery_durable.store.tables import executions
from tests.support.far import far
from tests.support.wait import eventually

from .arena import Arena

#: How long the database takes, in milliseconds.
DISTANCE = 4.0
#: Executions and greenlets, as they are tried every day.
USUAL = (300, 150)
FULL_POOL = 500


def size() -> tuple[int, int]:
    asked = int(os.environ.get("DURABLE_TEST_GREENLETS", "0"))
    return (asked, min(asked, FULL_POOL)) if asked else USUAL


@pytest.mark.timeout(900)
@pytest.mark.databases("postgresql", "mysql")
@pytest.mark.brokers("redis")
def test_a_worker_of_many_greenlets_drains_its_queue(arena: Arena) -> None:
    number, greenlets = size()
    with far(arena.database.url, DISTANCE) as url:
        # Nobody is to be told too late because this machine is slow; a livelock has no end at all.
        patient = {"durable_lease_timeout": 120.0, "durable_ack_timeout": 30.0, "durable_recovery_interval": 30.0}
        worker = arena.start(
            via=url,
            pool="gevent",
            concurrency=greenlets,
            durable=patient,
            conf={
                "worker_prefetch_multiplier": 4,
                "task_ignore_result": True,
                # Kombu's usual ten are not for hundreds of greenlets that acknowledge at the same time.
                "broker_transport_options": {"max_connections": 3000},
                "broker_pool_limit": FULL_POOL,
            },
        )
        worker.await_ready()
        for n in range(number):
            arena.send(f"e{n}", "small", n)
        journal = arena.database.engine()

        def states() -> dict[str, int]:
            count = sa.select(executions.c.state, sa.func.count()).group_by(executions.c.state)
            with journal.connect() as connection:
                return {str(getattr(state, "value", state)): n for state, n in connection.execute(count)}

        eventually(lambda: states() == {"completed": number}, 300, "not all are done", interval=0.2)
    log = worker.log()
    assert [line for line in log.splitlines() if "CD501" in line or "JournalUnavailable" in line] == []
    assert "Traceback" not in log
