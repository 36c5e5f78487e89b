"""Prints how many bytes more a resume of a long body holds than one of a short body: ``python -m ... KIND FOLDER``.

In a process of its own, in which nothing else allocates.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc
from pathlib import Path

import pytest

from celery_durable import DurableContext, Intent, OnAmbiguous, StepDescriptor
from tests.support.lab import Crash, Lab, quiet_heartbeat
from tests.support.ledger import Ledger

SHORT, LONG = 300, 1800

KINDS = {
    "idempotent": StepDescriptor.idempotent("work"),
    "at least once": StepDescriptor.at_least_once("work"),
    "guarded": StepDescriptor.guarded("work", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN),
    "named by a key": StepDescriptor.guarded("work", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN, key=str),
}


def held(lab: Lab, descriptor: StepDescriptor, steps: int) -> int:
    """Bytes that a resume holds when it has replayed so many steps."""
    left = 0

    def body(ctx: DurableContext) -> None:
        for number in range(steps):
            ctx.step(descriptor, abs, 10_000 * steps + number)
        raise Crash

    def again(ctx: DurableContext) -> None:
        nonlocal left
        gc.collect()
        tracemalloc.start()
        try:
            with contextlib.suppress(Crash):
                body(ctx)
            gc.collect()
            left = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        raise Crash

    lab.crash(body, id=str(steps))
    lab.crash(again, id=str(steps))
    return left


def growth(kind: str, folder: Path) -> int:
    """Bytes."""
    with pytest.MonkeyPatch.context() as patch:
        quiet_heartbeat(patch)
        lab = Lab(Ledger(folder / "ledger.jsonl"))
        held(lab, KINDS[kind], SHORT - 1)  # what a process does once
        return held(lab, KINDS[kind], LONG) - held(lab, KINDS[kind], SHORT)


if __name__ == "__main__":
    print(growth(sys.argv[1], Path(sys.argv[2])))
