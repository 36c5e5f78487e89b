"""A real worker behind a PgBouncer in transaction mode that restarts again and again."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from celery_durable.store.tables import executions
from tests.support.databases import JournalDatabase
from tests.support.wait import eventually

from .arena import Arena

#: So many executions; ten thousand were run for the manual.
COUNT = int(os.environ.get("DURABLE_TEST_POOLED", "150"))


@pytest.mark.databases("pgbouncer")
@pytest.mark.brokers("redis")
def test_every_execution_ends_well_though_the_pooler_restarts(arena: Arena, database: JournalDatabase) -> None:
    assert database.pooler is not None
    began = time.monotonic()
    worker = arena.start(concurrency=4, durable={"durable_ack_timeout": 3.0, "durable_lease_timeout": 15.0})
    names = arena.send_chains(COUNT, 2)
    behind = database.behind.engine()
    finished = sa.select(executions.c.state, sa.func.count()).group_by(executions.c.state)

    def done() -> Counter[str]:
        with behind.connect() as connection:
            return Counter({row[0]: row[1] for row in connection.execute(finished)})

    for part in (1, 2, 3):
        eventually(lambda part=part: done()["completed"] >= part * COUNT // 4, 60 + COUNT)  # type: ignore[misc]
        database.pooler.stop()
        database.pooler.start()
    eventually(lambda: done() == {"completed": COUNT}, 60 + COUNT, f"{done()}; {worker.log()[-3000:]}")
    happened = Counter((entry["execution"], entry["name"]) for entry in arena.ledger.entries())
    paid = {key: count for key, count in happened.items() if key[1].startswith("pay")}
    assert paid == {(name, f"pay {number}"): 1 for name in names for number in range(2)}
    for name in names:
        assert arena.result(name).get(timeout=60) == ["plain 0", "pay 0", "plain 1", "pay 1"]
    assert "Traceback" not in worker.log()
    print(f"{COUNT} executions in {time.monotonic() - began:.0f} s, three restarts; {sum(happened.values())} effects")
