"""Bodies whose steps can be undone, in every form in which branches come; and what happens to them at their edges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import celery_durable
from celery_durable import (
    DID_NOT_HAPPEN,
    DurableTask,
    Effect,
    Happened,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    StepDescriptor,
    StepHandle,
    UnknownExecution,
    WrongState,
    guarded,
    step,
)
from celery_durable.common import faults
from celery_durable.effects import Verdict
from tests.support.ledger import Ledger

from .app import app, gate, happen

__all__ = ["AGAIN", "app"]

#: How ids of reruns begin: they fail.
AGAIN = "again-"

# -- what arrives at an edge --------------------------------------------------------------------------------------

_driver = faults._do


def _do(action: str, point: str) -> None:
    """Besides what faults can do: ``cancel=execution`` and ``deploy=execution``; several with plus signs."""
    for word in action.split("+"):
        what, _, execution = word.partition("=")
        if what == "cancel":
            cancel(execution)
        elif what == "deploy":
            gate(f"new-{execution}").touch()
        else:
            _driver(what, point)


faults._do = _do


def cancel(execution: str) -> None:
    """As an application does, in any process: it tries again when the database is busy."""
    said = ""
    while not said:
        try:
            celery_durable.get(execution, app).cancel("changed its mind")
            said = "taken"
        except (WrongState, UnknownExecution) as refused:
            said = type(refused).__name__
        except JournalUnavailable:
            continue
        except BaseException as wrong:
            said = repr(wrong)
    Ledger.from_env().fire("cancelled", execution=execution, said=said)


# -- steps --------------------------------------------------------------------------------------------------------


def asks(step: StepHandle, *args: Any) -> Verdict:
    """Asks the remote side, which knows the keys of what has happened."""
    return Happened("told") if Ledger.from_env().count(step.name, key=step.idempotency_key.hex()) else DID_NOT_HAPPEN


def effect(kind: str) -> Any:
    """The effect of a step, by the name of its policy where it is guarded."""
    if kind in ("idempotent", "at_least_once"):
        return Effect(kind)
    policy: Any = asks if kind == "asks" else OnAmbiguous[kind]
    assumed = {"assumed": "assumed"} if kind == "SKIP" else {}
    return guarded(Intent.CUSTOM, on_ambiguous=policy, **assumed)


def take_back(result: str) -> None:
    happen()


def undoable(name: str, kind: str, undo: str = "plain") -> StepDescriptor:
    what = effect(kind)
    plain = isinstance(what, Effect)
    return StepDescriptor(
        name,
        what if plain else Effect.EXACTLY_ONCE_GUARDED,
        None if plain else what,
        compensate=take_back if undo == "plain" else step(effect=effect(undo))(take_back),
    )


def tell() -> None:
    happen()


async def happen_async() -> str:
    await asyncio.sleep(0)
    return happen()


# -- bodies -------------------------------------------------------------------------------------------------------


def middle(execution: str, kind: str, undo: str, change: str) -> list[StepDescriptor]:
    """The step under test and what surrounds it; by the code of the day."""
    edge = undoable("edge", kind, undo)
    if not gate(f"new-{execution}").exists():
        return [edge]
    return {
        "inserts": [undoable("extra", "RERUN"), edge],
        "renames": [undoable("renamed", kind, undo)],
        "drops": [],
    }[change]


def end(execution: str, ending: str) -> None:
    if ending == "fails" or execution.startswith(AGAIN):
        raise ValueError("in vain")


@app.task(base=DurableTask, bind=True)
def trip(self: DurableTask, shape: str, kind: str, undo: str, ending: str, change: str) -> str:
    """Does what can be undone, before, in and after branches that are threads."""
    durable = self.durable

    def edge() -> None:
        for one in middle(self.request.id, kind, undo, change):
            durable.step(one, happen)

    def beside() -> None:
        durable.step(undoable("beside", "asks"), happen)

    durable.step(undoable("first", "asks"), happen)
    durable.on_failure(tell)
    if shape == "serial":
        edge()
        beside()
    else:
        in_branches(durable, [edge, beside], nested=shape == "nested")
    durable.step(undoable("last", "asks"), happen)
    if ending == "waits":
        durable.sleep(3600)
    end(self.request.id, ending)
    return "whole"


def in_branches(durable: Any, functions: list[Callable[[], None]], *, nested: bool) -> None:
    with durable.parallel() as scope:
        for function in functions:
            if nested:
                scope.submit(in_branches, durable, [function], nested=False)
            else:
                scope.submit(function)


@app.task(base=DurableTask, bind=True)
async def trip_async(self: DurableTask, shape: str, kind: str, undo: str, ending: str, change: str) -> str:
    """The same, with coroutines."""
    durable = self.durable

    async def edge() -> None:
        for one in middle(self.request.id, kind, undo, change):
            await durable.step(one, happen_async)

    await durable.step(undoable("first", "asks"), happen_async)
    durable.on_failure(tell)
    if shape == "gather":
        steps = [*middle(self.request.id, kind, undo, change), undoable("beside", "asks")]
        await asyncio.gather(*(durable.step(one, happen_async) for one in steps))
    else:
        async with durable.parallel() as scope:
            scope.submit(edge)
            scope.step(undoable("beside", "asks"), happen_async)
    await durable.step(undoable("last", "asks"), happen_async)
    if ending == "waits":
        await durable.sleep(3600)
    end(self.request.id, ending)
    return "whole"
