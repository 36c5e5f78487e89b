"""Leases that ran out in an outage, in which no owner could renew one: live owners get the time to come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable.store import Database, Ownership, RecoveryStore, migrations
from celery_durable.store.records import Opened, OpenRequest, Published, Refusal, Refused, StoredPayload
from celery_durable.store.tables import executions
from tests.support.databases import JournalDatabase

LEASE_MS = 60_000
ENVELOPE = StoredPayload(0, b"{}")


@pytest.fixture
def store(database: JournalDatabase) -> Iterator[Database]:
    migrations.upgrade(database.url)
    opened = Database(database.url, timeout=30)
    yield opened
    opened.dispose()


@pytest.fixture
def ownership(store: Database) -> Ownership:
    return Ownership(store, namespace="outage", lease_ms=LEASE_MS, max_attempts=10)


@pytest.fixture
def recovery(store: Database) -> RecoveryStore:
    return RecoveryStore(store, namespace="outage", lease_ms=LEASE_MS, max_attempts=10)


def request(id: str, owner: str, **options: Any) -> OpenRequest:  # noqa: A002
    return OpenRequest(id, "task", owner, retries=0, envelope=lambda: ENVELOPE, **options)


def begin(store: Database, ownership: Ownership, id: str, lapsed: bool = True) -> Opened:  # noqa: A002
    """An execution whose owner lives."""
    opened = ownership.open(request(id, f"{id}:1"))
    assert isinstance(opened, Opened)
    if lapsed:
        past = sa.update(executions).where(executions.c.id == id).values(lease_until=1, wake_at=1)
        assert store.write(lambda connection: connection.execute(past).rowcount) == 1
    return opened


def test_a_postponed_message_takes_no_lease_over(store: Database, ownership: Ownership) -> None:
    begin(store, ownership, "one")
    refused = ownership.open(request("one", "other", postponed=True))
    assert isinstance(refused, Refused)
    assert refused.why is Refusal.LIVE
    # Any other one does.
    taken = ownership.open(request("one", "other"))
    assert isinstance(taken, Opened)
    assert taken.taken_over


def test_a_postponed_message_may_begin_an_execution(ownership: Ownership) -> None:
    assert isinstance(ownership.open(request("one", "owner", postponed=True)), Opened)


def test_recovery_spares_live_owners_and_nobody_else(
    store: Database, ownership: Ownership, recovery: RecoveryStore
) -> None:
    spared = begin(store, ownership, "spared")
    begin(store, ownership, "dead")
    assert recovery.forsake("dead:") == 1
    recovery.publish([Published("unsent", "task", 0, ENVELOPE, delay_ms=-2 * LEASE_MS)])
    claims = recovery.claim(10, spare_owners=lambda: True)
    assert sorted(due.id for due in claims.due) == ["dead", "unsent"]
    # It is not to be looked at again and again meanwhile.
    assert claims.next_ms is not None
    assert claims.next_ms > LEASE_MS / 2
    # Its owner comes back in time, or does not.
    assert ownership.renew([spared.fence]) == []
    assert recovery.claim(10).due == []
    past = sa.update(executions).where(executions.c.id == "spared").values(lease_until=1, wake_at=1)
    store.write(lambda connection: connection.execute(past))
    assert [due.id for due in recovery.claim(10).due] == ["spared"]
