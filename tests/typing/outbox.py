"""Typing of ``enqueue``: tasks and signatures, sessions and connections."""

from __future__ import annotations

from typing import Any

from celery import Celery, group
from celery.result import AsyncResult
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session
from typing_extensions import assert_type

from celery_durable import DurableTask, enqueue

app = Celery("typing")


@app.task(base=DurableTask)
def fulfil(order_id: int) -> str:
    return str(order_id)


def request(session: Session, sessions: scoped_session[Session], connection: Connection) -> None:
    assert_type(enqueue(session, fulfil, (1,), countdown=3), AsyncResult[Any])
    enqueue(sessions, fulfil.s(1))
    enqueue(connection, group(fulfil.s(1), fulfil.s(2)), kwargs={"x": 1}, queue="orders")
    enqueue("shop", fulfil)  # type: ignore[arg-type]
    enqueue(session, "fulfil")  # type: ignore[arg-type]


async def view(session: AsyncSession, connection: AsyncConnection) -> None:
    assert_type(await session.run_sync(enqueue, fulfil, (1,)), AsyncResult[Any])
    await connection.run_sync(enqueue, fulfil.s(1), countdown=3)
