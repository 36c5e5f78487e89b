"""The application whose processes the crash tests kill and stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.signals import worker_ready
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from celery_durable import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    DurableTask,
    Effect,
    Happened,
    Intent,
    OnAmbiguous,
    StepDescriptor,
    StepHandle,
    current_step,
    enqueue,
    execution_parked,
)
from celery_durable.common.faults import reached
from celery_durable.effects import Verdict
from tests.support.conf import configure
from tests.support.gates import await_gate, gate
from tests.support.ledger import Ledger

app = configure(Celery("crash"))


@worker_ready.connect
def freeze(**_: Any) -> None:
    """Celery collects garbage before each fork, which takes most of the time of one; this spares it the modules."""
    gc.collect()
    gc.freeze()


@execution_parked.connect
def on_parked(sender: Any, execution_id: str, state: str, reason: str, **_: Any) -> None:
    # The signal is every application's, and this module is loaded in the processes of other tests.
    if getattr(sender, "name", sender) not in app.tasks:
        return
    Ledger.from_env().fire("parked", execution=execution_id, state=state, reason=reason)


# -- the step under test ----------------------------------------------------------------------------------------


def happen() -> str:
    """An effect, and the ends of the world just before and just after it."""
    step = current_step()
    reached("effect.before", step.execution_id, step.name)
    Ledger.from_env().fire(step.name, execution=step.execution_id, key=step.idempotency_key.hex())
    reached("effect.after", step.execution_id, step.name)
    return "live"


def says(verdict: Verdict) -> Callable[[StepHandle], Verdict]:
    def reconcile(step: StepHandle) -> Verdict:
        reached("reconcile.before", step.execution_id, step.name)
        return verdict

    return reconcile


def asks(step: StepHandle) -> Verdict:
    """Asks the remote side, which knows the keys of what has happened."""
    reached("reconcile.before", step.execution_id, step.name)
    return Happened("told") if Ledger.from_env().count(step.name, key=step.idempotency_key.hex()) else DID_NOT_HAPPEN


def _guarded(name: str, on_ambiguous: Any, **options: Any) -> StepDescriptor:
    return StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=on_ambiguous, **options)


#: Effect class or policy -> the step under test.
EDGES = {
    "idempotent": StepDescriptor.idempotent("edge"),
    "at_least_once": StepDescriptor.at_least_once("edge"),
    "undoable": StepDescriptor.at_least_once("edge", compensate=lambda result: None),
    "SKIP": _guarded("edge", OnAmbiguous.SKIP, assumed="assumed"),
    "RERUN": _guarded("edge", OnAmbiguous.RERUN),
    "FAIL": _guarded("edge", OnAmbiguous.FAIL),
    "happened": _guarded("edge", says(Happened("told"))),
    "did_not": _guarded("edge", says(DID_NOT_HAPPEN)),
    "unknown": _guarded("edge", says(UNKNOWN)),
    "asks": _guarded("edge", asks),
}
BEFORE = _guarded("before", OnAmbiguous.FAIL)
AFTER = _guarded("after", OnAmbiguous.FAIL)


@app.task(base=DurableTask, bind=True)
def cell(self: DurableTask, edge: str) -> str:
    """One step under test, between two whose every repetition or loss would show."""
    self.durable.step(BEFORE, happen)
    value = self.durable.step(EDGES[edge], happen)
    self.durable.step(AFTER, happen)
    return value


@app.task(base=DurableTask, bind=True)
def who(self: DurableTask, edge: str) -> int:
    """As :func:`cell`, but returns the process that ended it."""
    self.durable.step(BEFORE, happen)
    self.durable.step(EDGES[edge], happen)
    self.durable.step(AFTER, happen)
    return os.getpid()


# -- a transactional step ---------------------------------------------------------------------------------------

#: What bodies write in transactions; the journal's database is the application's own.
bookings = sa.Table(
    "shop_booking",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("execution", sa.String(64), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)


def write_booking(session: Session, number: int, follows: bool) -> int:
    """Writes a row, and sends what follows from it."""
    running = current_step()
    session.execute(sa.insert(bookings).values(execution=running.execution_id, pid=os.getpid()))
    if follows:
        enqueue(session, tiny, (number,), task_id=f"{running.execution_id}-follows")
    reached("effect.after", running.execution_id, running.name)
    return number


@app.task(base=DurableTask, bind=True)
def booking(self: DurableTask, number: int, follows: bool) -> int:
    self.durable.step(BEFORE, happen)
    value = self.durable.transaction("edge", write_booking, number, follows)
    self.durable.step(AFTER, happen)
    return value


async def write_booking_async(session: AsyncSession, number: int, follows: bool) -> int:
    """The same, as a coroutine function."""
    await asyncio.sleep(0)
    return await session.run_sync(write_booking, number, follows)


@app.task(base=DurableTask, bind=True)
async def booking_async(self: DurableTask, number: int, follows: bool) -> int:
    self.durable.step(BEFORE, happen)
    value = await self.durable.transaction("edge", write_booking_async, number, follows)
    self.durable.step(AFTER, happen)
    return value


# -- other bodies -----------------------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True)
def poison(self: DurableTask) -> str:
    """Kills its process until it is repaired."""
    self.durable.step(BEFORE, happen)
    Ledger.from_env().fire("swallowed", execution=self.request.id)
    if not gate("repaired").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    self.durable.step(AFTER, happen)
    return "survived"


@app.task(base=DurableTask, bind=True)
def held(self: DurableTask) -> str:
    """Does one step and runs on until the gate ``release`` opens."""
    self.durable.step(BEFORE, happen)
    Ledger.from_env().fire("holding", execution=self.request.id)
    await_gate("release")
    self.durable.step(AFTER, happen)
    return "released"


@app.task(base=DurableTask, bind=True)
def tiny(self: DurableTask, number: int) -> int:
    return self.durable.step("double", lambda n: 2 * n, number)


def mark(number: int) -> int:
    """A quick effect."""
    Ledger.from_env().fire("quick", execution=current_step().execution_id, number=number)
    return number


@app.task(base=DurableTask, bind=True)
def quick(self: DurableTask, steps: int) -> int:
    """Many quick steps, of which those that are committed together share rows; a guarded one; and as many again."""
    found = [self.durable.step("quick", mark, number) for number in range(steps)]
    self.durable.step(EDGES["RERUN"], happen)
    found += [self.durable.step("quick", mark, number) for number in range(steps, 2 * steps)]
    return sum(found)


# -- what is undone -----------------------------------------------------------------------------------------------


def take_back(result: str) -> None:
    happen()


def _undone(name: str, on_ambiguous: OnAmbiguous = OnAmbiguous.RERUN) -> StepDescriptor:
    return StepDescriptor.guarded(name, Intent.CUSTOM, on_ambiguous=on_ambiguous, compensate=take_back)


@app.task(base=DurableTask, bind=True)
def undone(self: DurableTask, fails: bool) -> None:
    """Does two things that can be undone, and fails, or waits until it is cancelled."""
    self.durable.step(_undone("first"), happen)
    self.durable.on_failure(happen)
    self.durable.step(_undone("second"), happen)
    if fails:
        raise ValueError("in vain")
    self.durable.sleep(3600)


#: Effect -> a step that may be repeated, and can be undone.
BOOKINGS = {
    effect.value: StepDescriptor("book", effect, compensate=take_back)
    for effect in (Effect.IDEMPOTENT, Effect.AT_LEAST_ONCE)
}


def book() -> str:
    """An effect; its process dies when the test has seen it."""
    step = current_step()
    Ledger.from_env().fire("book", execution=step.execution_id, key=step.idempotency_key.hex())
    await_gate(f"seen-{step.execution_id}")
    reached("effect.after", step.execution_id, step.name)
    return "booked"


async def book_async() -> str:
    return await asyncio.to_thread(book)


@app.task(base=DurableTask, bind=True)
def booked(self: DurableTask, effect: str) -> None:
    self.durable.step(EDGES["idempotent"], happen)
    self.durable.step(BOOKINGS[effect], book)
    self.durable.step(AFTER, happen)


@app.task(base=DurableTask, bind=True)
def booked_in_a_branch(self: DurableTask, effect: str) -> None:
    with self.durable.parallel() as branches:
        branches.step(EDGES["idempotent"], happen)
        branches.step(BOOKINGS[effect], book)
    self.durable.step(AFTER, happen)


@app.task(base=DurableTask, bind=True)
async def booked_async(self: DurableTask, effect: str) -> None:
    await asyncio.gather(self.durable.step(BOOKINGS[effect], book_async), asyncio.sleep(0))
    self.durable.step(AFTER, happen)
