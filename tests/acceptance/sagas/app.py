"""The application whose sagas are killed, cancelled, changed and run anew."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import sqlalchemy as sa
from celery import Celery
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from celery_durable import (
    DID_NOT_HAPPEN,
    DurableTask,
    Effect,
    Happened,
    Intent,
    OnAmbiguous,
    StepDescriptor,
    StepHandle,
    current_step,
    transactional,
)
from celery_durable.effects import Verdict
from tests.support.conf import configure
from tests.support.gates import gate
from tests.support.ledger import Ledger

app = configure(Celery("sagas"))

#: How ids of reruns begin.
RERUN = "rerun-"


class Refused(Exception):
    """The way in which these bodies fail."""


def deployed() -> bool:
    """Whether this process runs the new code."""
    return gate("deployed").exists()


# -- steps --------------------------------------------------------------------------------------------------------


#: What transactional steps did: they have no other witness than the database.
written = sa.Table(
    "saga_written",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("execution", sa.String(64), nullable=False),
    sa.Column("what", sa.String(64), nullable=False),
)


def write(session: Session, name: str) -> str:
    session.execute(sa.insert(written).values(execution=current_step().execution_id, what=name))
    return name


async def write_async(session: AsyncSession, name: str) -> str:
    await asyncio.sleep(0.005)
    return await session.run_sync(write, name)


def do(name: str) -> str:
    running = current_step()
    Ledger.from_env().fire("did", execution=running.execution_id, what=name, key=running.idempotency_key.hex())
    return name


def undo(result: str, name: str) -> None:
    running = current_step()
    Ledger.from_env().fire("undid", execution=running.execution_id, what=name, key=running.idempotency_key.hex())


def take_back(name: str) -> None:
    undo(name, name)


async def do_async(name: str) -> str:
    await asyncio.sleep(0.005)
    return do(name)


def asks(step: StepHandle, name: str) -> Verdict:
    """Asks the remote side, which knows the keys of what has happened."""
    happened = Ledger.from_env().count("did", what=name, key=step.idempotency_key.hex())
    return Happened(name) if happened else DID_NOT_HAPPEN


def descriptor(name: str, kind: str) -> StepDescriptor:
    if kind == "transactional":
        return StepDescriptor(name, Effect.TRANSACTIONAL, transaction=transactional(), compensate=undo)
    if kind == "idempotent":
        return StepDescriptor.idempotent(name, compensate=undo)
    if kind == "at_least_once":
        return StepDescriptor.at_least_once(name, compensate=undo)
    policy: Any = {"RERUN": OnAmbiguous.RERUN, "FAIL": OnAmbiguous.FAIL, "asks": asks}[kind]
    return StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=policy, compensate=undo)


# -- bodies -------------------------------------------------------------------------------------------------------


def refuses(statement: list[Any], execution: str) -> bool:
    return statement[0] == "refuse" or (statement[0] == "refuse rerun" and execution.startswith(RERUN))


def named(statement: list[Any], new: bool) -> list[tuple[str, str]]:
    """The steps of a statement: name and kind."""
    match statement:
        case ["do", name, kind]:
            return [(name, kind)]
        case ["drifts", old, then]:
            return [(then if new else old, "RERUN")]
        case ["goes", name] if not new:
            return [(name, "RERUN")]
        case ["comes", name] if new:
            return [(name, "RERUN")]
    return []


@app.task(base=DurableTask, bind=True, max_retries=1)
def saga(self: DurableTask, statements: list[Any]) -> list[str]:
    """Runs a plan, with threads for its branches.

    :returns: what it has asked for, without what a refusal cut off.
    """
    new, durable = deployed(), self.durable

    def run(plan: list[Any]) -> list[str]:
        asked: list[str] = []
        for statement in plan:
            for name, kind in named(statement, new):
                asked.append(name)
                if kind == "transactional":
                    durable.transaction(descriptor(name, kind), write, name)
                else:
                    durable.step(descriptor(name, kind), do, name)
            match statement:
                case ["register", name]:
                    durable.on_failure(take_back, name)
                case ["sleep", seconds]:
                    durable.sleep(seconds)
                case ["pause", seconds]:
                    time.sleep(seconds)
                case ["branches", plans]:
                    with durable.parallel() as scope:
                        branches = [scope.submit(run, one) for one in plans]
                    asked += [name for branch in branches for name in branch.result()]
                case ["try", inner]:
                    try:
                        asked += run(inner)
                    except Refused:
                        asked += every(inner, new)
                case ["retry"] if not self.request.retries:
                    raise self.retry(countdown=0.05)
            if refuses(statement, self.request.id):
                raise Refused(self.request.id)
        return asked

    return run(statements)


@app.task(base=DurableTask, bind=True, max_retries=1)
async def saga_async(self: DurableTask, statements: list[Any]) -> list[str]:
    """The same, with coroutines for its branches."""
    new, durable = deployed(), self.durable

    async def run(plan: list[Any]) -> list[str]:
        asked: list[str] = []
        for statement in plan:
            for name, kind in named(statement, new):
                asked.append(name)
                if kind == "transactional":
                    await durable.transaction(descriptor(name, kind), write_async, name)
                else:
                    await durable.step(descriptor(name, kind), do_async, name)
            match statement:
                case ["register", name]:
                    durable.on_failure(take_back, name)
                case ["sleep", seconds]:
                    await durable.sleep(seconds)
                case ["pause", seconds]:
                    await asyncio.sleep(seconds)
                case ["branches", plans]:
                    async with durable.parallel() as scope:
                        branches = [scope.submit(run, one) for one in plans]
                    asked += [name for branch in branches for name in branch.result()]
                case ["try", inner]:
                    try:
                        asked += await run(inner)
                    except Refused:
                        asked += every(inner, new)
                case ["retry"] if not self.request.retries:
                    raise self.retry(countdown=0.05)
            if refuses(statement, self.request.id):
                raise Refused(self.request.id)
        return asked

    return await run(statements)


def every(plan: list[Any], new: bool) -> list[str]:
    """All steps of a plan."""
    found: list[str] = []
    for statement in plan:
        found += [name for name, _ in named(statement, new)]
        if statement[0] == "branches":
            found += [name for one in statement[1] for name in every(one, new)]
        if statement[0] == "try":
            found += every(statement[1], new)
    return found
