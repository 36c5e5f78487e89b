"""A database that answers and cannot write, as with a full disk: who looks for lapsed leases notices it in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from celery import Celery

from celery_durable import JournalUnavailable
from celery_durable.runtime import Runtime
from celery_durable.store import Database, Ownership, RecoveryStore, migrations
from celery_durable.store.records import Opened, OpenRequest, StoredPayload
from celery_durable.store.tables import executions, now_ms
from celery_durable.worker.service import Service
from tests.support.databases import JournalDatabase
from tests.support.saboteur import ERRORS, refusing

LEASE_MS = 600_000
ENVELOPE = StoredPayload(0, b"{}")

pytestmark = pytest.mark.databases("postgresql", "mysql")


@pytest.fixture
def store(database: JournalDatabase) -> Iterator[Database]:
    migrations.upgrade(database.url)
    opened = Database(database.url, timeout=1)
    yield opened
    opened.dispose()


def begin(store: Database, left: float) -> Opened:
    """An execution whose owner has so much of its lease left."""
    ownership = Ownership(store, namespace="full", lease_ms=LEASE_MS, max_attempts=10)
    opened = ownership.open(OpenRequest("one", "task", "one:1", 0, lambda: ENVELOPE))
    assert isinstance(opened, Opened)
    until = now_ms() + int(left * LEASE_MS)
    assert store.write(lambda c: c.execute(sa.update(executions).values(lease_until=until, wake_at=until)).rowcount)
    return opened


@pytest.mark.parametrize("left", [0.9, 0.68])
def test_where_owners_renew_in_time_nothing_is_written(store: Database, database: JournalDatabase, left: float) -> None:
    recovery = RecoveryStore(store, namespace="full", lease_ms=LEASE_MS, max_attempts=10)
    begin(store, left)
    with refusing(database, ERRORS[database.kind]["disk full"]):
        assert recovery.claim(10).due == []


def test_a_lease_that_is_late_tells_whether_it_could_be_renewed(store: Database, database: JournalDatabase) -> None:
    recovery = RecoveryStore(store, namespace="full", lease_ms=LEASE_MS, max_attempts=10)
    opened = begin(store, 0.5)
    with refusing(database, ERRORS[database.kind]["disk full"]), pytest.raises(JournalUnavailable):
        recovery.claim(10)
    for _ in range(3):
        assert recovery.claim(10).due == []
    # It is as good as it was.
    ownership = Ownership(store, namespace="full", lease_ms=LEASE_MS, max_attempts=10)
    assert ownership.renew([opened.fence]) == []
    lease = store.read(lambda c: c.execute(sa.select(executions.c.lease_until - now_ms())).scalar_one())
    assert lease > 0.9 * LEASE_MS


def test_owners_that_could_not_renew_are_spared_when_there_is_room_again(
    store: Database, database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from before a lease is late until just after it has run out."""
    app = Celery("full", set_as_current=False, broker="memory://")
    app.conf.update(database.conf, durable_namespace="full", durable_lease_timeout=LEASE_MS / 1000)
    opened = begin(store, 0.5)
    service = Service(app)
    clock = [time.monotonic()]
    monkeypatch.setattr("celery_durable.worker.service.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with refusing(database, ERRORS[database.kind]["disk full"]), pytest.raises(JournalUnavailable):
        service.round()
    clock[0] += 0.5 * LEASE_MS / 1000
    store.write(lambda c: c.execute(sa.update(executions).values(lease_until=now_ms() - 1, wake_at=now_ms() - 1)))
    assert service.round() > 0
    sent, held = store.read(lambda c: c.execute(sa.select(executions.c.sends, executions.c.epoch)).one())
    assert (sent, held) == (0, opened.fence.epoch)
    # Who does not renew then is taken over.
    clock[0] += 1.1 * LEASE_MS / 1000
    recovered = service.recovery.claim(10, spare_owners=service._spares_owners)
    assert [due.id for due in recovered.due] == ["one"]
    Runtime.of(app).end()
