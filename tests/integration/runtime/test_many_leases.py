"""However many executions a process owns, all its leases are renewed."""

from __future__ import annotations

import sqlalchemy as sa

from celery_durable.store import Database, Ownership
from celery_durable.store.migrations import upgrade
from celery_durable.store.records import Fence, Opened, OpenRequest, StoredPayload
from celery_durable.store.tables import executions
from tests.support.databases import JournalDatabase

MANY = 2_100


def test_thousands_of_leases_are_renewed_and_those_that_are_gone_are_told(database: JournalDatabase) -> None:
    ours = Database(database.url, timeout=60)
    upgrade(ours.engine)
    ownership = Ownership(ours, namespace="many", lease_ms=600_000, max_attempts=10)
    first = ownership.open(OpenRequest("first", "job", "owner", 0, lambda: StoredPayload(0, b"")))
    assert isinstance(first, Opened)
    one = first.fence.pk
    with ours.engine.begin() as connection:
        row = dict(connection.execute(sa.select(executions).where(executions.c.pk == one)).one()._mapping)
        rows = [{**row, "pk": one + n, "id": f"e{n}", "epoch": 1 + n % 3, "lease_until": 0} for n in range(1, MANY)]
        connection.execute(sa.insert(executions), rows)
        now = connection.scalar(sa.select(executions.c.created_at).where(executions.c.pk == one))
    fences = [first.fence, *(Fence(row["pk"], row["epoch"]) for row in rows)]
    taken = [Fence(fences[5].pk, 9), Fence(one - 1, 1)]
    assert ownership.renew([*fences[:5], *taken, *fences[6:]]) == taken
    with ours.engine.connect() as connection:
        renewed = connection.scalar(
            sa.select(sa.func.count()).select_from(executions).where(executions.c.lease_until > now + 300_000)
        )
    assert renewed == MANY - 1
    ours.dispose()
