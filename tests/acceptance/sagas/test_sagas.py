"""Random sagas, killed, cancelled, changed by a deploy, run anew: each is whole, undone, or parked for a true reason.

``DURABLE_TEST_SAGAS`` says how many on each database, ``DURABLE_TEST_SEED`` which.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import psutil
import pytest

import celery_durable
from celery_durable import UnknownExecution, UnknownStep, WrongState
from celery_durable.store.records import Execution, State
from tests.support.wait import eventually
from tests.support.worker import WorkerProcess

from .app import RERUN, every
from .arena import Arena
from .plans import plan

pytestmark = [
    pytest.mark.brokers("redis"),
    pytest.mark.databases("sqlite", "postgresql", "mysql"),
    pytest.mark.timeout(3600),
]

COUNT = int(os.environ.get("DURABLE_TEST_SAGAS", "24"))
SEED = int(os.environ.get("DURABLE_TEST_SEED", "1"))

#: Why an execution may wait for an operator; anything else is no true reason.
CHANGED = re.compile(r"CD1\d\d|changed|other arguments|no longer")


class Chaos(threading.Thread):
    """Kills processes of workers, one after the other, as long as there is work."""

    def __init__(self, arena: Arena, workers: list[WorkerProcess], random: Random) -> None:
        super().__init__(daemon=True)
        self.arena, self.workers, self.random = arena, workers, random
        self.over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while not self.over.wait(self.random.uniform(0.2, 0.8)):
            number = self.random.randrange(len(self.workers))
            worker = self.workers[number]
            children = worker.children()
            if self.random.random() < 0.15 or not children:
                worker.crash()
                self.workers[number] = start(self.arena, number)
            else:
                self._kill(self.random.choice(children))
            self.kills += 1

    @staticmethod
    def _kill(pid: int) -> None:
        try:
            psutil.Process(pid).send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass


def start(arena: Arena, number: int) -> WorkerProcess:
    pool, concurrency = ("prefork", 3) if number == 0 else ("threads", 6)
    return arena.worker(pool=pool, concurrency=concurrency)


@contextmanager
def chaos(arena: Arena, random: Random) -> Iterator[Chaos]:
    thread = Chaos(arena, [start(arena, 0), start(arena, 1)], random)
    thread.start()
    try:
        yield thread
    finally:
        thread.over.set()
        thread.join(120)
        assert not thread.is_alive()


def test_sagas_are_whole_or_undone_or_parked(arena: Arena) -> None:
    random = Random(SEED)
    plans = {f"saga-{number}": plan(random) for number in range(COUNT)}
    cancelled = set(random.sample(sorted(plans), COUNT // 3))
    sent: list[str] = []
    with chaos(arena, random) as killer:
        for execution, statements in plans.items():
            if len(sent) == COUNT // 2:
                arena.open_gate("deployed")
            arena.send(execution, random.choice(("saga", "saga_async")), statements)
            sent.append(execution)
            # A few are under way at any time: more would only wait for their turn to be killed.
            eventually(lambda: under_way(arena, len(sent)) < 12, 600, interval=0.05)
            cancel_some(arena, random, [one for one in sent if one in cancelled])
        settle(arena, list(plans))
        # What has ended, or is parked, is run anew from somewhere; half of the reruns refuse.
        reruns = run_anew(arena, random, plans)
        settle(arena, [*plans, *reruns])
    plans.update({name: plans[name.removeprefix(RERUN)] for name in reruns})
    ends, wrong = judge(arena, plans)
    print(f"{arena.database.kind}, seed {SEED}: {dict(ends)}, {killer.kills} kills")
    assert not wrong, "\n".join(wrong)
    assert sum(ends.values()) == len(plans)


def under_way(arena: Arena, sent: int) -> int:
    """How many executions are still to do something."""
    return sent - arena.settled()


def cancel_some(arena: Arena, random: Random, candidates: list[str]) -> None:
    for execution in candidates:
        if random.random() < 0.3:
            try:
                arena.operations.cancel(execution, "the test changed its mind")
            except (WrongState, UnknownExecution):
                pass  # It has ended, is being undone, is in doubt, or has not begun.


def settle(arena: Arena, executions: list[str]) -> None:
    """Wait for everybody's end; settle what is in doubt until nothing is."""
    while True:
        arena.await_settled(executions, timeout=900)
        if not sum(arena.settle(row) for row in rows(arena) if row.state is State.AMBIGUOUS):
            return


def rows(arena: Arena) -> list[Execution]:
    return arena.operations.find(limit=100_000)


def run_anew(arena: Arena, random: Random, plans: dict[str, list[object]]) -> list[str]:
    begun = []
    for row in rows(arena):
        if random.random() < 0.5:
            begin = random.choice((None, *range(len(plans[row.id]) + 1)))
            try:
                handle = celery_durable.get(row.id, arena.outside).rerun(begin, durable_id=f"{RERUN}{row.id}")
            except (WrongState, UnknownStep):
                continue  # It was undone; or that step has not ended; or there is none there.
            begun.append(handle.id)
    return begun


def before_the_deploy(row: Execution) -> bool:
    """Whether the execution, or that of which it is a rerun, can have begun with the old code."""
    return int(row.id.rpartition("-")[2]) < COUNT // 2


def judge(arena: Arena, plans: dict[str, list[object]]) -> tuple[Counter[str], list[str]]:
    """
    :returns: how many came to which end; and what is wrong.
    """
    done, undone = arena.done(), arena.undone()
    ends: Counter[str] = Counter()
    wrong = []
    for row in rows(arena):
        did, undid = done.get(row.id, {}), undone.get(row.id, {})
        ends[str(row.state)] += 1
        wrong += [
            f"{row.id} ({row.state}, generation {row.generation}): {complaint}\n    {plans[row.id]}"
            for complaint in complaints(arena, row, plans[row.id], set(did), set(undid))
        ]
    return ends, wrong


def complaints(arena: Arena, row: Execution, statements: list[object], did: set[str], undid: set[str]) -> Iterator[str]:
    """What is wrong with how an execution has ended."""
    steps = set(every(statements, True)) | set(every(statements, False))
    if foreign := (undid - did) & steps:
        yield f"{sorted(foreign)} were undone, and it has never done them"
    left = did - undid
    match row.state:
        case State.COMPLETED:
            asked = set(celery_durable.get(row.id, arena.outside).result(timeout=30))
            if asked & undid:
                yield f"{sorted(asked & undid)} were undone, though the body completed with them"
            told = before_the_deploy(row) and row.generation > 1 and arena.warned_of(row.id)
            if unknown := {name for name in left - asked if f"step '{name}' " not in (told or "")}:
                yield f"{sorted(unknown)} were done, and the body that completed knows nothing of them, nor anybody"
        case State.FAILED | State.CANCELLED:
            if left:
                yield f"{sorted(left)} were done and not undone"
        case State.QUARANTINED:
            reason = celery_durable.get(row.id, arena.outside).status().reason or ""
            if not CHANGED.search(reason) or not before_the_deploy(row):
                yield f"it is parked without a true reason: {reason!r}"
        case _:
            yield "it has not ended"
