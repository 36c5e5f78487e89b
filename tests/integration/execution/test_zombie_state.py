"""A zombie, stopped before its body waits and woken when its heir is done, changes nothing that callers see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import states

from celery_durable import DurableContext
from celery_durable.common.faults import reached
from celery_durable.store.records import State
from tests.support.lab import Lab, everywhere

from .test_told import Tracing

pytestmark = everywhere


@pytest.fixture
def trace(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> Tracing:
    return Tracing(make_lab(result_backend="cache+memory://"), monkeypatch)


def heir(trace: Tracing, id: str, fails: bool) -> None:  # noqa: A002
    """Another owner takes the execution over, and brings it to its end."""

    def body(context: DurableContext) -> str:
        if fails:
            raise LookupError("the heir failed")
        return "the heir's"

    before = trace.lab._body
    trace.lab.lose_lease(id)
    trace.lab._body = body
    trace(id)
    trace.lab._body = before
    assert trace.lab.state(id) is (State.FAILED if fails else State.COMPLETED)
    assert trace.is_told(id)


def shown(trace: Tracing, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The states that the result backend is told from now on."""
    found: list[str] = []
    backend = trace.lab.app.backend
    store = backend.store_result

    def watched(task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        found.append(state)
        return store(task_id, result, state, *args, **kwargs)

    monkeypatch.setattr(backend, "store_result", watched)
    return found


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_who_was_stopped_for_long_asks_before_it_says_anything(
    trace: Tracing, fails: bool, monkeypatch: pytest.MonkeyPatch
):
    execution = f"long-{fails}-{trace.lab.runtime.database.engine.dialect.name}"
    seen: list[str] = []

    def body(context: DurableContext) -> None:
        context.step("one", int)
        context._run.flush()
        heir(trace, execution, fails)
        context._run.buffer.verified_at -= 1000.0
        seen.append(trace.lab.app.AsyncResult(execution).state)
        told.clear()
        context.sleep(3600)

    told = shown(trace, monkeypatch)
    trace.lab._body = body
    trace(execution)
    assert seen == [states.FAILURE if fails else states.SUCCESS]
    assert told == []
    assert trace.lab.app.AsyncResult(execution).state == seen[0]


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_who_was_stopped_at_the_very_last_moment_takes_it_back(
    trace: Tracing, fails: bool, monkeypatch: pytest.MonkeyPatch
):
    execution = f"late-{fails}-{trace.lab.runtime.database.engine.dialect.name}"

    contexts: list[DurableContext] = []

    def body(context: DurableContext) -> None:
        contexts.append(context)
        context.sleep(3600)

    def stopped(point: str, *where: str) -> None:
        if point == "state.before_show":
            contexts[0]._run.flush()  # or the flush timer would prolong the lease in between
            heir(trace, execution, fails)
        reached(point, *where)

    monkeypatch.setattr("celery_durable.execution.shown_state.reached", stopped)
    told = shown(trace, monkeypatch)
    trace.lab._body = body
    trace(execution)
    expected = states.FAILURE if fails else states.SUCCESS
    assert told == [expected, "SUSPENDED", expected]
    result = trace.lab.app.AsyncResult(execution)
    assert result.state == expected
    assert repr(result.result) == ("LookupError('the heir failed')" if fails else '"the heir\'s"')
