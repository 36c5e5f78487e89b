"""A commit of which only the answer is missing: the server may have done it, may be at it still, or never will."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable.store import Database, Journal, Ownership, migrations
from celery_durable.store.first_commit import insert_new, new_row
from celery_durable.store.journal import insert_entries
from celery_durable.store.records import Batch, Entry, EntryKind, Fence, Opened, OpenRequest, State, StoredPayload
from celery_durable.store.statements import FENCE
from celery_durable.store.tables import executions, journal
from tests.support.databases import JournalDatabase
from tests.support.wait import eventually

LEASE_MS = 60_000

#: On SQLite nobody else can be in the middle of a commit: there is one writer at a time, and it is this machine's.
pytestmark = pytest.mark.databases("postgresql", "mysql")


@pytest.fixture
def store(database: JournalDatabase) -> Iterator[Database]:
    migrations.upgrade(database.url)
    opened = Database(database.url, timeout=30)
    yield opened
    opened.dispose()


@pytest.fixture
def fence(store: Database) -> Fence:
    """Of an execution that runs."""
    ownership = Ownership(store, namespace="fate", lease_ms=LEASE_MS, max_attempts=10)
    envelope = StoredPayload(0, b"{}")
    opened = ownership.open(OpenRequest("one", "task", "owner", retries=0, envelope=lambda: envelope))
    assert isinstance(opened, Opened)
    return opened.fence


def batch_of(fence: Fence, **options: Any) -> Batch:
    entries = [Entry("", n, 0, EntryKind.RESULT, None, f"step {n}", payload=StoredPayload(0, b"1")) for n in range(2)]
    return Batch(fence, 1, tuple(entries), steps=2, **options)


def rows(store: Database) -> tuple[int, int]:
    """Entries in the journal, and the execution's count of steps."""
    return store.read(
        lambda c: (
            c.execute(sa.select(sa.func.count()).select_from(journal)).scalar_one(),
            c.execute(sa.select(executions.c.steps)).scalar_one(),
        )
    )


@pytest.mark.parametrize("commits", [True, False], ids=["it commits", "it is undone"])
@pytest.mark.parametrize("again", ["append", "fold"])
def test_a_commit_that_is_still_under_way_is_waited_for(
    database: JournalDatabase, store: Database, fence: Fence, commits: bool, again: str
) -> None:
    """Its connection was given up, but the server goes on with it while the same is tried again."""
    batch = batch_of(fence, again=True)
    journal_of = Journal(store, lease_ms=LEASE_MS)
    if again == "fold":
        batch = Batch(fence, 1, (batch.entries[0]._replace(kind=EntryKind.CHECKPOINT),))
    answers: list[Any] = []
    act: Callable[[], Any] = {
        "append": lambda: journal_of.append([batch]),
        "fold": lambda: journal_of.fold(batch, -1),
    }[again]
    second = threading.Thread(target=lambda: answers.append(act()))
    observer = database.engine()
    with database.engine(isolation_level="READ COMMITTED").connect() as first:
        values = {"b_pk": fence.pk, "b_epoch": fence.epoch, "b_lease": LEASE_MS, "b_steps": batch.steps}
        assert first.execute(FENCE, values).rowcount == 1
        insert_entries(first, [batch])
        second.start()
        eventually(lambda: waiting(observer), 30, "nobody waits for the first try")
        assert answers == []
        if commits:
            first.commit()
        else:
            first.rollback()
    second.join(30)
    assert answers == [set() if again == "append" else True]
    assert rows(store) == ((2, 2) if again == "append" else (1, 0))


@pytest.mark.parametrize("commits", [True, False], ids=["it commits", "it is undone"])
@pytest.mark.parametrize("again", ["append", "finish"])
def test_a_first_commit_that_is_still_under_way_is_waited_for(
    database: JournalDatabase, store: Database, commits: bool, again: str
) -> None:
    """The one that writes the execution's row too."""
    ownership = Ownership(store, namespace="fate", lease_ms=LEASE_MS, max_attempts=10)
    request = OpenRequest("one", "task", "owner", retries=0, envelope=lambda: StoredPayload(0, b"{}"), fresh=True)
    opened = ownership.open(request)
    assert isinstance(opened, Opened)
    assert opened.birth is not None
    batch = batch_of(opened.fence, again=again == "append", birth=opened.birth)
    answers: list[Any] = []
    act: Callable[[], Any] = {
        "append": lambda: Journal(store, lease_ms=LEASE_MS).append([batch]),
        "finish": lambda: ownership.finish(batch, "owner", State.COMPLETED, None),
    }[again]
    second = threading.Thread(target=lambda: answers.append(act()))
    observer = database.engine()
    with database.engine(isolation_level="READ COMMITTED").connect() as first:
        row = new_row(opened.fence.pk, "fate", request, LEASE_MS, steps=2)
        assert insert_new(first, row, request.envelope())
        insert_entries(first, [batch])
        if again == "finish":
            first.execute(sa.update(executions).values(state="completed"))
        second.start()
        eventually(lambda: waiting(observer), 30, "nobody waits for the first try")
        assert answers == []
        if commits:
            first.commit()
        else:
            first.rollback()
    second.join(30)
    assert answers == [set() if again == "append" else None]
    assert rows(store) == (2, 2)


def waiting(engine: sa.Engine) -> bool:
    """Whether a transaction waits for another one's lock."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            waits = sa.text(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return bool(connection.execute(waits).scalar_one())
        # Not from innodb_trx: that is brought up to date only when nobody has looked at it for a tenth of a second,
        # and tests that run beside this one look too.
        mine = sa.text("SELECT id FROM information_schema.processlist WHERE db = DATABASE()")
        threads = set(connection.execute(mine).scalars())
        status: str = connection.exec_driver_sql("SHOW ENGINE INNODB STATUS").one()[2]
        blocked = [part for part in status.split("---TRANSACTION") if "\nLOCK WAIT" in part]
        return any(int(thread) in threads for part in blocked for thread in re.findall(r"thread id (\d+)", part))
