"""The application whose messages brokers lose, double and delay."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_durable import DurableTask, Intent, OnAmbiguous, StepDescriptor, current_step
from celery_durable.common.faults import reached
from tests.support.conf import configure
from tests.support.gates import await_gate
from tests.support.ledger import Ledger

app = configure(Celery("brokers"))

WORK = StepDescriptor.guarded("work", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)
AFTER = StepDescriptor.guarded("after", Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL)


def happen(value: Any = None) -> Any:
    """An effect that the test counts; under FAIL, so that a second one could not go unnoticed."""
    running = current_step()
    Ledger.from_env().fire(running.name, execution=running.execution_id)
    reached("effect.after", running.execution_id, running.name)
    return value


def begun(task: DurableTask) -> None:
    """Tell the test that a body runs."""
    Ledger.from_env().fire("body", execution=task.request.id)


@app.task(base=DurableTask, bind=True)
def held(self: DurableTask) -> str:
    """Does one step and runs on until the gate opens."""
    self.durable.step(WORK, happen)
    begun(self)
    await_gate("release")
    self.durable.step(AFTER, happen)
    return "released"


@app.task(base=DurableTask, bind=True, max_retries=1)
def later(self: DurableTask, countdown: float) -> int:
    """Comes back once, after ``countdown`` seconds."""
    begun(self)
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    self.durable.step(WORK, happen)
    return int(self.request.retries)


@app.task(base=DurableTask, bind=True)
def add(self: DurableTask, *numbers: int) -> int:
    return int(self.durable.step(WORK, happen, sum(numbers)))


@app.task(base=DurableTask, bind=True)
def total(self: DurableTask, numbers: list[int]) -> int:
    return int(self.durable.step(WORK, happen, sum(numbers)))


@app.task(base=DurableTask, bind=True)
def count(self: DurableTask, values: list[Any]) -> int:
    return int(self.durable.step(WORK, happen, len(values)))


@app.task(base=DurableTask, bind=True)
def refuse(self: DurableTask) -> None:
    self.durable.step(WORK, happen)
    raise ValueError("refused")


@app.task(base=DurableTask, bind=True)
def held_refusal(self: DurableTask) -> None:
    """Runs on until the gate opens, and fails."""
    self.durable.step(WORK, happen)
    begun(self)
    await_gate("release")
    raise ValueError("refused")


@app.task(base=DurableTask, bind=True)
def complain(self: DurableTask, *about: Any) -> None:
    """An errback."""
    self.durable.step(WORK, happen)


#: What a body can see of its message, and what must not change when it is sent again.
SEEN = (
    "id", "task", "args", "kwargs", "expires", "timelimit", "shadow", "root_id", "parent_id", "group",
    "group_index", "ignore_result", "correlation_id", "reply_to", "stamped_headers", "stamps", "origin", "argsrepr",
    "kwargsrepr", "callbacks", "errbacks", "chain", "chord", "replaced_task_nesting", "retries", "eta",
)  # fmt: skip


@app.task(base=DurableTask, bind=True)
def mirror(self: DurableTask, *args: Any, **kwargs: Any) -> int:
    """Tells what its message looks like."""
    request = self.request
    seen = {name: repr(getattr(request, name, None)) for name in SEEN}
    # What recovery sends again names the execution's row.
    seen["headers"] = repr({k: v for k, v in (request.headers or {}).items() if k != "durable_pk"})
    info = request.delivery_info or {}
    properties = request.properties or {}
    seen |= {
        "routing_key": info.get("routing_key"),
        "priority": info.get("priority"),
        "content_type": request.__dict__.get("durable_raw", (None,))[0],
        "delivery_mode": properties.get("delivery_mode"),
        "stamp": repr(request.__dict__.get("tenant")),
    }
    Ledger.from_env().fire("mirror", execution=request.id, seen=seen)
    await_gate("release")
    return self.durable.step(WORK, happen, len(args))


@app.task
def note(what: str) -> None:
    """A task that is not durable."""
    Ledger.from_env().fire("note", what=what)
