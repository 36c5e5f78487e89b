"""An operation that ends its transaction by a way that no text tells: the step says so, and is not journaled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from celery_durable import DurableContext, TransactionMisused
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab, everywhere

pytestmark = everywhere

KEPT = sa.Table("unended", sa.MetaData(), sa.Column("name", sa.String(20)))


@pytest.fixture(autouse=True)
def table(database: JournalDatabase) -> None:
    KEPT.metadata.create_all(database.engine())


def ends(connection: Any, *statements: str) -> None:
    connection.execute(sa.insert(KEPT).values(name="before"))
    for statement in statements:
        connection.exec_driver_sql(statement)
    connection.execute(sa.insert(KEPT).values(name="after"))


def names(lab: Lab) -> list[str]:
    with lab.runtime.database.engine.connect() as connection:
        return sorted(connection.execute(sa.select(KEPT.c.name)).scalars())


def misuses(lab: Lab, operation: Callable[..., Any]) -> None:
    def body(context: DurableContext) -> None:
        with pytest.raises(TransactionMisused):
            context.transaction("misuse", operation)
        # The connection that was misused is not handed on: this one is in a transaction again.
        context.transaction("well", lambda session: session.execute(sa.insert(KEPT).values(name="well")) and None)

    lab.run(body)
    assert lab.entries()[-1] == "1 RESULT well"
    assert not any("RESULT misuse" in entry for entry in lab.entries())
    assert "after" not in names(lab)
    assert names(lab).count("well") == 1


@pytest.mark.parametrize(
    "statement", ["INSERT INTO unended VALUES ('x'); COMMIT", "/*! COMMIT */", "SET autocommit = 1", "COMMIT; BEGIN"]
)
def test_what_the_text_tells_is_not_said(lab: Lab, statement: str) -> None:
    misuses(lab, lambda session: ends(session.connection(), statement))
    assert names(lab) == ["well"]


@pytest.mark.databases("mysql")
@pytest.mark.parametrize(
    "statement", ["CREATE TABLE other (a INT)", "LOCK TABLES unended WRITE", "TRUNCATE TABLE unended"]
)
def test_what_commits_by_itself_there_is_not_said(lab: Lab, statement: str) -> None:
    misuses(lab, lambda session: ends(session.connection(), statement))
    assert names(lab) == ["well"]


@pytest.mark.databases("mysql")
def test_a_procedure_that_commits_is_seen(lab: Lab, database: JournalDatabase) -> None:
    with database.engine().begin() as connection:
        connection.exec_driver_sql("CREATE PROCEDURE ends() COMMIT")
    misuses(lab, lambda session: ends(session.connection(), "CALL ends()"))
    assert names(lab) == ["before", "well"]


def test_so_it_is_in_a_coroutine_function(lab: Lab) -> None:
    async def operation(connection: AsyncConnection) -> None:
        await connection.execute(sa.insert(KEPT).values(name="before"))
        await connection.exec_driver_sql("INSERT INTO unended VALUES ('x'); COMMIT")

    async def body(context: DurableContext) -> None:
        await asyncio.sleep(0)
        with pytest.raises(TransactionMisused):
            await context.transaction("misuse", operation)

    lab.run(body)
    assert names(lab) == []


def test_the_driver_s_own_commit_is_seen(lab: Lab) -> None:
    def operation(session: Any) -> None:
        session.execute(sa.insert(KEPT).values(name="before"))
        session.connection().connection.driver_connection.commit()

    misuses(lab, operation)
    assert names(lab) == ["before", "well"]


def test_an_error_that_the_operation_swallows_is_said_again(lab: Lab) -> None:
    def operation(session: Any) -> None:
        session.execute(sa.insert(KEPT).values(name="before"))
        session.connection().connection.driver_connection.commit()
        for _ in range(2):
            with pytest.raises(TransactionMisused):
                session.execute(sa.text("SELECT 1 FROM unended WHERE 1 = 0"))
            session.connection().connection.driver_connection.rollback()

    misuses(lab, operation)


@pytest.mark.parametrize("number", [0, 3])
def test_what_ends_nothing_is_let_through(lab: Lab, number: int) -> None:
    def operation(session: Any) -> int:
        for name in range(number):
            with session.begin_nested():
                session.execute(sa.insert(KEPT).values(name=str(name)))
        session.connection().exec_driver_sql("SAVEPOINT mine")
        session.connection().exec_driver_sql("ROLLBACK TO SAVEPOINT mine")
        return number

    assert lab.run(lambda context: context.transaction("well", operation)) == number
    assert len(names(lab)) == number
