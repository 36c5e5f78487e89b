"""Typing of transactional steps: the session is the library's, the rest is the caller's."""

from __future__ import annotations

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from celery_durable import DurableContext, StepDescriptor, step, transactional


@step(effect=transactional(isolation="SERIALIZABLE", session=sessionmaker()))
def reserve(session: Session, item: str, count: int = 1) -> int:
    return count


@step(effect=transactional(using="default"))
def with_django(item: str) -> int:
    return len(item)


def by_core(connection: Connection, item: str) -> bytes:
    return item.encode()


def body(context: DurableContext) -> None:
    assert_type(reserve("chair", count=2), int)
    assert_type(with_django("chair"), int)
    assert_type(context.transaction(by_core, "chair"), bytes)
    assert_type(context.transaction("name", by_core, "chair"), bytes)
    assert_type(context.transaction(StepDescriptor.transactional("name", tries=3), by_core, item="chair"), bytes)
    reserve(1)  # type: ignore[arg-type]
    context.transaction(by_core)  # type: ignore[call-overload]
    transactional(isolation="CHAOS")  # type: ignore[call-overload]
    transactional(using="default", isolation="SERIALIZABLE")  # type: ignore[call-overload]


@step(effect=transactional(session=async_sessionmaker()))
async def put_back(session: AsyncSession, item: str) -> int:
    return len(item)


async def by_async_core(connection: AsyncConnection, item: str) -> bytes:
    return item.encode()


async def async_body(context: DurableContext) -> None:
    assert_type(await put_back("chair"), int)
    assert_type(await context.transaction(by_async_core, "chair"), bytes)
    assert_type(await context.transaction("name", by_async_core, item="chair"), bytes)
    await put_back(1)  # type: ignore[arg-type]
