"""Sagas whose process is killed, cancelled or replaced by new code at each of their edges: see :mod:`.edges`.

Judged by the outside witness: what is done and not undone is nothing, or the body has completed, or the execution is
parked for a true reason. All executions of a database run at once, on one worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from celery import Celery

import celery_durable
from celery_durable.store.records import Execution, State

from .arena import Arena
from .edges import AGAIN, CASES, SHAPES, Case
from .saga_app import AGAIN as AGAIN_PREFIX

pytestmark = [
    pytest.mark.brokers("redis"),
    pytest.mark.databases("sqlite", "postgresql", "mysql"),
    pytest.mark.timeout(600),
]

#: The servers see one in so many.
SOME = 7
#: The order of the body. The new code has other steps in the middle.
ORDER = {"first": 0, "tell": 1, "extra": 2, "edge": 3, "renamed": 3, "beside": 4, "last": 5}
#: Where nobody knows afterwards whether an operation has happened.
WINDOW = ("step.after_intent", "effect.before", "effect.after", "step.before_result")

APP = "tests.acceptance.crash.saga_app"


@pytest.fixture
def outside(arena: Arena) -> Iterator[Celery]:
    """An application as a web view has it."""
    arena.app = APP
    app = Celery("crash", set_as_current=False)
    app.conf.update({**arena.broker.conf, **arena.database.conf})
    yield app
    app.close()


def task(shape: str) -> str:
    return "trip_async" if shape in ("gather", "async") else "trip"


def start(arena: Arena, case: Case) -> None:
    arm(arena, case, case.id)
    arguments = (case.shape, case.kind, case.undo, case.ending, case.change)
    arena.send(case.id, task(case.shape), *arguments)


def arm(arena: Arena, case: Case, execution: str) -> None:
    words = [f"{word}={execution}" if word != "kill" else word for word in case.arrives.split("+")]
    arena.arm(execution, case.point, action="+".join(words), step=case.step)
    if case.then:
        arena.arm(execution, case.then)


def test_what_is_done_and_not_undone_is_nothing(arena: Arena, outside: Celery) -> None:
    cases = CASES if arena.database.kind == "sqlite" else CASES[::SOME]
    again = AGAIN if arena.database.kind == "sqlite" else AGAIN[::SOME]
    worker = arena.worker(concurrency=4)
    whole = {shape: f"whole-{shape}" for shape in SHAPES}
    for shape, execution in whole.items():
        arena.send(execution, task(shape), shape, "RERUN", "plain", "ends", "")
    for case in cases:
        start(arena, case)
    arena.await_settled(list(whole.values()), timeout=300)
    for case in again:
        arm(arena, case, AGAIN_PREFIX + case.id)
        celery_durable.get(whole[case.shape], outside).rerun("last", durable_id=AGAIN_PREFIX + case.id)
    everyone = {**{case.id: case for case in cases}, **{AGAIN_PREFIX + case.id: case for case in again}}
    arena.await_settled(list(everyone), timeout=400)
    assert worker.alive

    wrong = []
    doubts = {row.id: arena.settle(row) for row in rows(arena) if row.state is State.AMBIGUOUS}
    arena.await_settled(list(everyone), timeout=120)
    ends: Counter[str] = Counter()
    for row in rows(arena):
        if row.id in everyone:
            case = everyone[row.id]
            ends[str(row.state)] += 1
            found = [*complaints(arena, case, row, doubts.get(row.id, 0))]
            happened = [entry["name"] for entry in arena.ledger.entries(execution=row.id)]
            wrong += [f"{row.id} ({row.state}): {one}\n    {happened}" for one in found]
    print(f"{arena.database.kind}: {dict(ends)}")
    assert not wrong, "\n".join(wrong)
    assert sum(ends.values()) == len(everyone)
    for execution in whole.values():
        assert arena.row(execution).state is State.COMPLETED
        assert [entry["name"] for entry in arena.ledger.entries(execution=execution) if "undo" in entry["name"]] == []


def rows(arena: Arena) -> list[Execution]:
    return arena.operations.find(limit=5000)


def complaints(arena: Arena, case: Case, row: Execution, doubts: int) -> Iterator[str]:
    """What is wrong with how an execution has ended."""
    if left := [one for one in arena.unreached() if one.split("@")[1] == row.id]:
        yield f"{left} was never reached"
    entries = [one for one in arena.ledger.entries(execution=row.id) if "key" in one]
    did = Counter(one["name"] for one in entries if not one["name"].startswith("undo "))
    undone = [one["name"].removeprefix("undo ") for one in entries if one["name"].startswith("undo ")]
    undid = Counter(undone)
    places = [ORDER[name] for name in undone]
    if places != sorted(places, reverse=True):
        yield "it was not undone backwards"
    keys = {(one["name"], one["key"]) for one in entries}
    if len(keys) > len({name for name, _ in keys}):
        yield "something has several keys"
    yield from too_often(case, did, undid)
    yield from left_over(arena, case, row, set(did), set(undid))
    if (doubts > 0) is not is_doubtful(case):
        yield f"{doubts} steps were in doubt"
    said = [one["said"] for one in arena.ledger.entries("cancelled", execution=row.id)]
    if row.state not in ends(case, row.id, said):
        yield f"that is not how it ends; its cancellation: {said}"


def too_often(case: Case, did: Counter[str], undid: Counter[str]) -> Iterator[str]:
    """Nothing is done or undone twice, but what may be repeated, where knowledge was lost."""
    for name, times in [*did.items(), *((f"undo {name}", times) for name, times in undid.items())]:
        kind = {"edge": case.kind, "undo edge": case.undo}.get(name, "plain" if name.startswith("undo") else "asks")
        lost = "kill" in case.arrives and name == case.step and case.point in WINDOW
        # The result of an idempotent step is committed some time later, and by no generation taken over.
        late = "kill" in case.arrives and kind == "idempotent"
        if times > (2 if late or (lost and kind in ("plain", "RERUN")) else 1):
            yield f"{name!r} happened {times} times"


def left_over(arena: Arena, case: Case, row: Execution, did: set[str], undid: set[str]) -> Iterator[str]:
    """What is done and not undone, and the other way round."""
    assumed = {"edge"} if case.kind == "SKIP" and case.step == "edge" else set()
    if foreign := undid - did - assumed - {"tell"}:
        yield f"{sorted(foreign)} were undone, and it has never done them"
    left = did - undid
    if row.state is State.COMPLETED:
        if undid:
            yield f"{sorted(undid)} were undone, though it completed"
    elif row.state is State.QUARANTINED:
        reason = arena.reason(row)
        changed = "its body changed while it is being undone" in reason or "its compensations changed" in reason
        if not case.change or not (changed or (left and any(f"step {name!r}" in reason for name in left))):
            yield f"it is parked without a true reason: {reason!r}"
    elif left:
        yield f"{sorted(left)} were done and not undone"
    elif undid and not row.id.startswith(AGAIN_PREFIX) and "tell" not in undid:
        yield "nobody was told"


def is_doubtful(case: Case) -> bool:
    """Whether an operator is asked."""
    kind = case.undo if case.step == "undo edge" else case.kind
    here = case.step in ("edge", "undo edge") and case.point in WINDOW and "kill" in case.arrives
    return here and kind == "FAIL"


def ends(case: Case, execution: str, said: list[str]) -> set[State]:
    """How it may end."""
    fails = case.ending == "fails" or execution.startswith(AGAIN_PREFIX)
    usual = {State.FAILED} if fails else {State.COMPLETED}
    if case.change and (case.change != "inserts" or case.step != "edge"):
        # What it did is not asked for any more; or nobody can say how far an undoing had come.
        usual |= {State.QUARANTINED}
    if "taken" not in said:
        return usual
    if case.point == "task.before_outcome" or fails:
        return usual | {State.CANCELLED}  # it may come too late
    return {State.CANCELLED}
