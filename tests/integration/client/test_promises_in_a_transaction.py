"""``resolve()`` and ``reject()`` in the caller's own transaction: rolled back, the promise was not kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_durable import (
    ConfigurationError,
    DurableContext,
    PromiseSettled,
    WrongToken,
    close,
    heartbeat,
    reject,
    resolve,
)
from celery_durable.runtime import Runtime
from celery_durable.store.records import PromiseState
from celery_durable.store.tables import executions, promises
from tests.integration.transactions.test_django import configured
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab, everywhere

pytestmark = everywhere


@contextlib.contextmanager
def rolled_back(block: Any) -> Iterator[None]:
    with contextlib.suppress(LookupError), block:
        yield
        raise LookupError


class Given:
    """A promise, and an execution that is asleep until it is kept."""

    def __init__(self, lab: Lab, told: list[str]) -> None:
        self.lab = lab
        self.told = told

        def body(context: DurableContext) -> list[str]:
            promise = context.promise("approval", heartbeat=3600)
            return [promise.id, promise.token]

        self.id, self.token = lab.run(body)
        epoch = lab.execution().epoch
        lab.sql(sa.update(executions).values(state="suspended", sends=0, wake_at=None))
        lab.sql(sa.update(promises).values(awaited=epoch))

    @property
    def state(self) -> PromiseState:
        return self.lab.runtime.promises.look([self.id]).rows[self.id].state

    def keep(self, session: Any = None, value: Any = "yes") -> None:
        resolve(self.id, self.token, value, session=session, app=self.lab.app)

    @property
    def awake(self) -> bool:
        with self.lab.runtime.database.engine.connect() as connection:
            return connection.execute(sa.select(executions.c.wake_at)).scalar_one() is not None


@pytest.fixture
def given(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Given:
    told: list[str] = []
    monkeypatch.setattr("celery_durable.client.settling_within.wake", lambda app, waking: told.append(waking.id))
    return Given(lab, told)


def sessions(engine: sa.Engine) -> dict[str, Callable[[], Any]]:
    return {
        "session": lambda: Session(engine),
        "scoped": scoped_session(sessionmaker(engine)),
        "connection": engine.connect,
    }


@pytest.mark.parametrize("kind", ["session", "scoped", "connection"])
def test_it_shares_the_fate_of_the_transaction(given: Given, database: JournalDatabase, kind: str) -> None:
    make = sessions(database.engine())[kind]
    session = make()
    given.keep(session)
    assert given.told == []
    session.rollback()
    assert (given.state, given.told, given.awake) == (PromiseState.PENDING, [], False)
    given.keep(session)
    given.keep(session)  # said once more
    session.commit()
    assert (given.state, set(given.told), given.awake) == (PromiseState.RESOLVED, {"one"}, True)
    session.close()
    with pytest.raises(PromiseSettled):
        given.keep(value="no")


def test_a_savepoint_that_is_rolled_back_takes_it_with_it(given: Given, database: JournalDatabase) -> None:
    with Session(database.engine()) as session, session.begin():
        with rolled_back(session.begin_nested()):
            given.keep(session)
        session.execute(sa.text("SELECT 1"))
    assert (given.state, given.told) == (PromiseState.PENDING, [])


def test_a_rejection_and_what_cannot_be(given: Given, database: JournalDatabase) -> None:
    app = given.lab.app
    with Session(database.engine()) as session, session.begin():
        with pytest.raises(WrongToken):
            resolve(given.id, "another", session=session, app=app)
        reject(given.id, given.token, "no", session=session, app=app)
        with pytest.raises(PromiseSettled):
            given.keep(session)
    assert (given.state, given.told) == (PromiseState.REJECTED, ["one"])


def test_where_there_is_no_transaction_to_join(given: Given, database: JournalDatabase, tmp_path: Any) -> None:
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with elsewhere.connect() as connection, pytest.raises(ConfigurationError, match=r"elsewhere\.db"):
        given.keep(connection)
    elsewhere.dispose()
    connection = database.engine(isolation_level="AUTOCOMMIT").connect()
    with connection, pytest.raises(ConfigurationError, match=r"autocommit mode.*resolve\(session=...\)"):
        given.keep(connection)
    with pytest.raises(ConfigurationError, match=r"resolve\(session=...\) takes"):
        given.keep("session")
    assert given.state is PromiseState.PENDING


@pytest.mark.databases("postgresql")
def test_an_asynchronous_session(given: Given, database: JournalDatabase) -> None:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def keep() -> None:
        engine = create_async_engine(database.url)
        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(ConfigurationError, match=r"await session.run_sync\(lambda session: resolve"):
                given.keep(session)
            await session.run_sync(lambda joined: given.keep(joined))
        await engine.dispose()

    asyncio.run(keep())
    assert (given.state, given.told) == (PromiseState.RESOLVED, ["one"])


@pytest.mark.databases("postgresql", "mysql")
def test_others_wait_for_the_transaction_and_are_told_what_it_came_to(given: Given, database: JournalDatabase) -> None:
    with Session(database.engine()) as session, session.begin():
        given.keep(session)
        rows = given.lab.runtime.promises.look([given.id]).rows
        assert rows[given.id].state is PromiseState.PENDING
    with pytest.raises(PromiseSettled):
        reject(given.id, given.token, "no", app=given.lab.app)


# -- Django's -----------------------------------------------------------------------------------------------------


@pytest.fixture
def atomic(database: JournalDatabase) -> Iterator[Any]:
    from django.db import connections, transaction

    connections.databases["default"] = configured(database)
    with contextlib.suppress(AttributeError):
        del connections["default"]  # what another test has left of this name, in this thread
    yield transaction.atomic
    connections["default"].close()
    del connections["default"]


def test_atomic_is_joined_where_messages_join_it(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, atomic: Any
) -> None:
    told: list[str] = []
    monkeypatch.setattr("celery_durable.client.settling_within.wake", lambda app, waking: told.append(waking.id))
    given = Given(make_lab(durable_outbox_using="default"), told)
    with rolled_back(atomic()):
        given.keep()
    assert (given.state, told) == (PromiseState.PENDING, [])
    with atomic(), rolled_back(atomic()):
        given.keep()
    assert (given.state, told) == (PromiseState.PENDING, [])
    with atomic():
        given.keep()
        assert told == []
    assert (given.state, told) == (PromiseState.RESOLVED, ["one"])


def test_atomic_is_joined_where_its_connection_is_given(given: Given, atomic: Any) -> None:
    from django.db import connection

    with rolled_back(atomic()):
        given.keep(connection)
    assert (given.state, given.told) == (PromiseState.PENDING, [])
    with atomic():
        reject(given.id, given.token, "no", session=connection, app=given.lab.app)
    assert (given.state, given.told) == (PromiseState.REJECTED, ["one"])
    with pytest.raises(ConfigurationError, match="not inside"):
        given.keep(connection)


def test_without_either_it_is_kept_at_once(given: Given, atomic: Any) -> None:
    with rolled_back(atomic()):
        given.keep()
    assert given.state is PromiseState.RESOLVED


def test_a_sign_of_life_counts_at_once(make_lab: Callable[..., Lab], atomic: Any) -> None:
    given = Given(make_lab(durable_outbox_using="default"), [])

    def deadline() -> int:
        found = given.lab.runtime.promises.look([given.id]).rows[given.id].deadline
        assert found is not None
        return found

    given.lab.sql(sa.update(promises).values(deadline=promises.c.deadline - 1000))
    before = deadline()
    with rolled_back(atomic()):
        heartbeat(given.id, given.token, app=given.lab.app)
    assert deadline() > before


# -- closing ------------------------------------------------------------------------------------------------------


def test_what_is_closed_is_opened_anew(lab: Lab) -> None:
    assert lab.run(lambda context: context.step("one", int, 1)) == 1
    before = lab.runtime
    close(lab.app)
    close(lab.app)  # nothing is open
    assert Runtime.known(lab.app) is None
    assert lab.run(lambda context: 2, id="two") == 2
    assert lab.runtime is not before
    with pytest.raises(ConfigurationError, match="run in this process"):
        lab.run(lambda context: close(lab.app), id="three")


def test_a_journal_in_memory_is_gone(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(durable_database_url="sqlite://")
    runs: list[int] = []
    for _ in range(2):
        lab.run(lambda context: runs.append(1))
    assert len(runs) == 1
    close(lab.app)
    lab.run(lambda context: runs.append(1))
    assert len(runs) == 2
