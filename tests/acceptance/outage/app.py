"""The application whose workers lose their database."""

from __future__ import annotations

import time

from celery import Celery

from celery_durable import (
    DID_NOT_HAPPEN,
    DurableTask,
    Happened,
    Intent,
    JournalUnavailable,
    OnAmbiguous,
    StepDescriptor,
    StepHandle,
    current_step,
)
from celery_durable.effects import Verdict
from tests.support.conf import configure
from tests.support.gates import await_gate
from tests.support.ledger import Ledger

app = configure(Celery("outage"))


def tell(execution: str, name: str) -> None:
    """Tell the test that a body is here."""
    Ledger.from_env().fire(name, execution=execution)


def happen() -> str:
    """An effect that the test counts."""
    step = current_step()
    Ledger.from_env().fire(step.name, execution=step.execution_id, key=step.idempotency_key.hex())
    return step.name


def asks(step: StepHandle) -> Verdict:
    """Asks the remote side, which knows the keys of what has happened."""
    known = Ledger.from_env().count(step.name, key=step.idempotency_key.hex())
    return Happened(step.name) if known else DID_NOT_HAPPEN


def paying(name: str) -> StepDescriptor:
    return StepDescriptor.guarded(name, Intent.MONEY_MOVING, on_ambiguous=asks)


#: Whoever is in doubt about one of these waits for an operator.
DOUBTFUL = StepDescriptor.guarded("pay", Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL)
BEFORE = StepDescriptor.guarded("before", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)
AFTER = StepDescriptor.guarded("after", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)


@app.task(base=DurableTask, bind=True, max_retries=0)
def chain(self: DurableTask, length: int) -> list[str]:
    """Pairs of a plain and a guarded step: when a guarded one has fired, all plain ones before it are committed.

    It may not be retried: whatever happens to the database must not count as one.
    """
    found = []
    for number in range(length):
        found.append(self.durable.step(f"plain {number}", happen))
        found.append(self.durable.step(paying(f"pay {number}"), happen))
        time.sleep(0.01)
    return found


@app.task(base=DurableTask, bind=True, max_retries=0)
def small(self: DurableTask, number: int) -> int:
    """Quick steps, of which one is guarded."""
    for n in range(3):
        self.durable.step(f"plain {n}", abs, n)
    return self.durable.step(BEFORE, abs, number)


@app.task(base=DurableTask, bind=True)
def held(self: DurableTask, gate: str) -> str:
    """Waits within a guarded operation until a gate opens: the effect is there, its result is not."""

    def operate() -> str:
        happen()
        await_gate(gate)
        return "released"

    self.durable.step(BEFORE, happen)
    value = self.durable.step(StepDescriptor.guarded("held", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL), operate)
    self.durable.step(AFTER, happen)
    return value


@app.task(base=DurableTask, bind=True)
def beginning(self: DurableTask) -> str:
    """Waits before its first step until the gate ``release`` opens."""
    tell(self.request.id, "holding")
    await_gate("release")
    return self.durable.step(BEFORE, happen)


@app.task(base=DurableTask, bind=True)
def ends(self: DurableTask, fails: bool) -> str:
    """Waits between two guarded steps until the gate ``release`` opens, and then returns or fails."""
    self.durable.step(BEFORE, happen)
    tell(self.request.id, "holding")
    await_gate("release")
    self.durable.step(AFTER, happen)
    if fails:
        raise LookupError("it failed")
    return "released"


@app.task(base=DurableTask, bind=True)
def cut_off(self: DurableTask) -> str:
    """Waits until its gate opens, the first owner's or the second's, and then asks for a guarded step."""
    self.durable.step(BEFORE, happen)
    which = "second" if self.durable.attempt else "first"
    tell(self.request.id, "holding")
    await_gate(which)
    self.durable.step(AFTER, happen)
    return f"by the {which}"


@app.task(base=DurableTask, bind=True, max_retries=0)
def branches(self: DurableTask, number: int) -> list[str]:
    """So many payments at the same time, each of which waits for its answer until its gate opens."""
    execution = self.request.id

    def pay(branch: int) -> str:
        tell(current_step().execution_id, f"pay {branch}")
        await_gate(f"answer {branch}")
        return f"receipt {branch}"

    def run(branch: int) -> str:
        try:
            return self.durable.step(DOUBTFUL, pay, branch)
        except JournalUnavailable:
            tell(execution, f"told {branch}")
            raise

    with self.durable.parallel(max_workers=number) as scope:
        paid = [scope.submit(run, n) for n in range(number)]
    return [one.result() for one in paid]


# -- bodies with mistakes in them -------------------------------------------------------------------------------


class Unstorable:
    """Nothing that could be stored."""


@app.task(base=DurableTask, bind=True)
def mistaken(self: DurableTask, mistake: str) -> object:
    """Does one guarded step, and then something that cannot work."""
    self.durable.step(BEFORE, happen)
    if mistake == "argument":
        self.durable.step("wrong", len, [Unstorable()])
    elif mistake == "result":
        self.durable.step("wrong", lambda: {"a": [Unstorable()]})
    elif mistake == "guarded result":
        self.durable.step(AFTER, lambda: {"a": [Unstorable()]})
    elif mistake == "size":
        self.durable.step("wrong", lambda: "x" * 3000)
    elif mistake == "nested":
        self.durable.step("wrong", lambda: self.durable.step("inner", len, ""))
    elif mistake == "return":
        return Unstorable()
    return "no mistake"
