"""What counts as told: Celery's own tracer hands outcomes on, and something of that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import states
from celery.app.trace import build_tracer
from kombu import Producer

from celery_durable import DurableTask
from celery_durable.store.records import State
from tests.support.lab import Lab

USUAL: dict[str, Any] = {
    "retries": 0,
    "is_eager": False,
    "called_directly": False,
    "delivery_info": {"exchange": "", "routing_key": "celery"},
    "properties": {},
    "hostname": "test",
}


class Tracing:
    """Delivers messages as a worker does, whose broker and result backend are in memory and may be away."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.monkeypatch = monkeypatch
        self.sent: list[str] = []
        lab._body = lambda context: lab.ledger.fire("body") or "value"

    def __call__(self, id: str = "one", task: Any = None, **request: Any) -> None:  # noqa: A002
        """Deliver a message."""
        task = task or self.lab.job
        tracer = build_tracer(task.name, task, app=self.lab.app)
        tracer(id, (), {}, {**USUAL, "id": id, "task": task.name, "args": (), "kwargs": {}, **request})

    def lose(self, method: str, times: int = 1) -> None:
        """Let a method of the result backend fail so often."""
        backend = self.lab.app.backend
        original: Callable[..., Any] = getattr(backend, method)
        left = [times]

        def failing(*args: Any, **kwargs: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise ConnectionError("the result backend is away")
            return original(*args, **kwargs)

        self.monkeypatch.setattr(backend, method, failing)

    def is_told(self, id: str = "one") -> bool:  # noqa: A002
        """Whether recovery leaves it alone from now on."""
        self.lab.runtime.keeper.mark()
        return self.lab.execution(id).wake_at is None

    def waiting(self) -> list[str]:
        """Ids of the messages in the broker, which are taken out."""
        found = []
        with self.lab.app.connection_for_read() as connection:
            queue = connection.SimpleQueue("celery")
            while True:
                try:
                    message = queue.get_nowait()
                except queue.Empty:
                    return found
                found.append(message.headers["id"])
                message.ack()


@pytest.fixture
def trace(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> Tracing:
    tracing = Tracing(make_lab(result_backend="cache+memory://"), monkeypatch)
    tracing.waiting()  # what other tests of this process have left there
    return tracing


def signature(lab: Lab, id: str) -> dict[str, Any]:  # noqa: A002
    return dict(lab.app.signature("elsewhere", task_id=id, immutable=True))


def test_an_outcome_is_told_when_it_is_stored(trace: Tracing):
    trace("told-1")
    assert trace.is_told("told-1")
    assert trace.lab.app.AsyncResult("told-1").get(timeout=1) == "value"


@pytest.mark.parametrize("method", ["store_result", "mark_as_done"])
def test_a_result_that_is_not_stored_is_handed_on_again(trace: Tracing, method: str):
    trace.lose(method)
    lost = f"lost-{method}"  # the result backend is one for all tests of this process
    trace(lost, callbacks=[signature(trace.lab, "callback")], chain=[signature(trace.lab, "next")])
    assert not trace.is_told(lost)
    assert trace.lab.app.AsyncResult(lost).state == states.PENDING, "Celery must not call it failed"
    assert trace.lab.state(lost) is State.COMPLETED
    trace(lost, callbacks=[signature(trace.lab, "callback")], chain=[signature(trace.lab, "next")])
    assert trace.is_told(lost)
    assert trace.lab.app.AsyncResult(lost).state == states.SUCCESS
    assert trace.lab.ledger.count("body") == 1
    # Under the same ids, so that durable ones run once.
    assert set(trace.waiting()) == {"callback", "next"}


def test_nothing_is_sent_or_stored_where_the_broker_is_away(trace: Tracing, monkeypatch: pytest.MonkeyPatch):
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("the broker is away")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "publish", away)
        trace("broker-1", chain=[signature(trace.lab, "next")])
    assert not trace.is_told("broker-1")
    assert trace.lab.app.AsyncResult("broker-1").state == states.PENDING, "it would be taken for told"
    trace("broker-1", chain=[signature(trace.lab, "next")])
    assert trace.is_told("broker-1")
    assert trace.waiting() == ["next"]


def test_a_failure_that_is_not_stored_is_handed_on_again(trace: Tracing):
    def fails(context: Any) -> None:
        trace.lab.ledger.fire("body")
        raise LookupError("nothing there")

    trace.lab._body = fails
    trace.lose("store_result")
    errback = [signature(trace.lab, "errback")]
    trace("failed-1", errbacks=errback)
    assert not trace.is_told("failed-1")
    trace("failed-1", errbacks=errback)
    assert trace.is_told("failed-1")
    assert trace.lab.app.AsyncResult("failed-1").state == states.FAILURE
    assert trace.lab.ledger.count("body") == 1
    assert set(trace.waiting()) == {"errback"}


def test_a_stored_failure_does_not_say_that_its_errbacks_were_sent(trace: Tracing):
    """Celery stores a failure first."""

    def fails(context: Any) -> None:
        raise LookupError("nothing there")

    trace.lab._body = fails
    errback = [signature(trace.lab, "errback")]
    trace.lose("_call_task_errbacks")  # as if its process had died there
    trace("died-1", errbacks=errback)
    assert trace.lab.app.AsyncResult("died-1").state == states.FAILURE
    assert not trace.is_told("died-1")
    trace("died-1", errbacks=errback)
    assert trace.is_told("died-1")
    assert trace.waiting() == ["errback"]


def test_a_value_that_the_backend_refuses_for_good_is_celerys_failure(trace: Tracing, monkeypatch: pytest.MonkeyPatch):
    """Trying again would not cure it."""
    backend = trace.lab.app.backend
    store = backend.store_result

    def refuse(task_id: str, result: Any, state: str, **options: Any) -> Any:
        if state == states.SUCCESS:
            raise TypeError("cannot be stored")
        return store(task_id, result, state, **options)

    monkeypatch.setattr(backend, "store_result", refuse)
    trace("refused-1", chain=[signature(trace.lab, "next")])
    assert trace.is_told("refused-1")
    assert trace.lab.app.AsyncResult("refused-1").state == states.FAILURE


def test_nothing_is_sent_once_more_while_the_backend_does_not_answer(trace: Tracing):
    trace.lose("store_result")
    trace("silent-1", chain=[signature(trace.lab, "next")])
    assert trace.waiting() == ["next"]
    trace.lose("get_task_meta")
    trace("silent-1", chain=[signature(trace.lab, "next")])
    assert (trace.waiting(), trace.is_told("silent-1")) == ([], False)
    trace("silent-1", chain=[signature(trace.lab, "next")])
    assert (trace.waiting(), trace.is_told("silent-1")) == (["next"], True)


def test_a_chord_counts_its_part_in_the_end(trace: Tracing):
    trace.lose("on_chord_part_return")
    member = {"chord": signature(trace.lab, "body"), "group": "group"}
    trace("member-1", **member)
    assert not trace.is_told("member-1")
    trace("member-1", **member)
    assert trace.is_told("member-1")


class Hooked(DurableTask):
    abstract = True

    def on_success(self, *_: Any) -> None:
        self.app.send_task("elsewhere", task_id="by-the-hook")

    def after_return(self, *_: Any) -> None:
        self.app.send_task("elsewhere", task_id="by-the-other")


def test_what_hooks_publish_is_theirs(trace: Tracing):
    hooked = trace.lab.task("hooked", lambda task: "value", base=Hooked)
    trace("hooked-1", task=hooked, chain=[signature(trace.lab, "next")])
    assert trace.waiting() == ["next", "by-the-hook", "by-the-other"]
    trace.lab.app.send_task("elsewhere", task_id="later")
    assert trace.waiting() == ["later"]


def test_the_old_protocol_of_messages_works_as_well(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch):
    """There the id is in the body."""
    trace = Tracing(make_lab(result_backend="cache+memory://", task_protocol=1), monkeypatch)
    with trace.lab.app.connection_for_read() as connection:
        connection.SimpleQueue("celery").clear()
        trace.lab.job.apply_async(task_id="old-1")
        trace("old-1", callbacks=[signature(trace.lab, "callback")])
        queue = connection.SimpleQueue("celery")
        assert [queue.get_nowait().payload["id"] for _ in range(queue.qsize())] == ["old-1", "callback"]
    assert trace.is_told("old-1")
