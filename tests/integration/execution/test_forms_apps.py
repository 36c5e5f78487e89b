"""Applications: several in one process, one whose every task is durable, and ones that are finished late."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, _state, chord, group, shared_task
from celery.contrib.testing.worker import start_worker

from celery_durable import DurableTask, step
from celery_durable.runtime import Runtime
from celery_durable.store import Operations
from celery_durable.worker.bootstep import DurableStep
from celery_durable.worker.request import DurableRequest
from tests.support.lab import quiet_heartbeat

calls: list[Any] = []


@step
def double(number: int) -> int:
    calls.append(number)
    return 2 * number


def doubled(number: int) -> int:
    return double(number)


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    """Makes an app whose journal has the app's name; what it shares with other apps ends with the test."""
    calls.clear()
    quiet_heartbeat(monkeypatch)
    # Nor has it what other tests share; Celery's own tasks stay.
    own = {made for made in _state._on_app_finalizers if made.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
    before = _state.default_app, getattr(_state._tls, "current_app", None)
    apps = []

    def make(name: str, *, settings: dict[str, Any] | None = None, **options: Any) -> Celery:
        app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False, **options)
        app.conf.broker_transport_options = {"polling_interval": 0.01}
        app.conf.task_default_queue = f"forms-{name}"  # no message of another test
        app.conf.update({"durable_database_url": f"sqlite:///{tmp_path / name}.db", **(settings or {})})
        apps.append(app)
        return app

    yield make
    for app in apps:
        runtime = Runtime.known(app)
        if runtime is not None:
            runtime.end()
        app.close()
    _state.default_app, _state._tls.current_app = before


def journaled(app: Celery) -> list[tuple[str, str, str]]:
    """Namespace, task and id of the executions in an app's journal."""
    runtime = Runtime.of(app)
    rows = Operations(runtime.database, namespace=runtime.settings.namespace).find()
    return sorted((row.namespace, row.task, row.id) for row in rows)


# -- several ----------------------------------------------------------------------------------------------------


def test_apps_in_one_process_keep_to_their_own_journals(make_app: Callable[..., Celery]) -> None:
    one, two = make_app("one"), make_app("two")
    first = one.task(doubled, base=DurableTask, name="job", shared=False)
    second = two.task(doubled, base=DurableTask, name="job", shared=False)
    for _ in range(2):
        assert (first.apply((1,), task_id="x").get(), second.apply((2,), task_id="x").get()) == (2, 4)
    assert calls == [1, 2]
    assert (journaled(one), journaled(two)) == ([("one", "job", "x")], [("two", "job", "x")])


def test_apps_that_share_a_journal_are_told_apart_by_their_names(make_app: Callable[..., Celery]) -> None:
    one = make_app("one")
    two = make_app("two", settings={"durable_database_url": one.conf.durable_database_url})
    for app, number in ((one, 1), (two, 2)):
        app.task(doubled, base=DurableTask, name="job", shared=False).apply((number,), task_id="x")
    assert calls == [1, 2]
    assert (journaled(one), journaled(two)) == ([("one", "job", "x")], [("two", "job", "x")])


def test_a_shared_task_is_journaled_by_the_app_that_runs_it(make_app: Callable[..., Celery]) -> None:
    work = shared_task(doubled, base=DurableTask, name="shared_job")
    one, two = make_app("one"), make_app("two")
    for app in (one, two):
        app.set_current()
        assert work.apply((1,), task_id="x").get() == 2
    assert calls == [1, 1]
    assert (journaled(one), journaled(two)) == ([("one", "shared_job", "x")], [("two", "shared_job", "x")])


def test_only_apps_with_durable_tasks_get_a_recovery_service_and_they_get_one(
    make_app: Callable[..., Celery],
) -> None:
    durable, plain = make_app("durable"), make_app("plain")
    for name in ("a", "b"):
        durable.task(doubled, base=DurableTask, name=name, shared=False)
    plain.task(doubled, name="a", shared=False)
    for app in (durable, plain):
        app.finalize()
    assert (DurableStep in durable.steps["worker"], DurableStep in plain.steps["worker"]) == (True, False)
    sender = durable.amqp.send_task_message
    durable.task(doubled, base=DurableTask, name="c", shared=False)
    assert durable.amqp.send_task_message is sender


# -- one whose every task is durable ----------------------------------------------------------------------------


def test_with_task_cls_every_task_is_durable_but_celerys_own(make_app: Callable[..., Celery], tmp_path: Path) -> None:
    """Celery's own tasks unlock chords and spread maps: nobody journals them, and the outbox leaves them alone."""
    app = make_app(
        "all",
        task_cls=DurableTask,
        settings={
            "durable_outbox": True,
            "result_backend": f"file://{tmp_path}",
            "result_chord_retry_interval": 0.05,
        },
    )
    work = app.task(doubled, name="work", shared=False)

    @app.task(name="total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    unlock = app.tasks["celery.chord_unlock"]
    assert (unlock.acks_late, unlock.reject_on_worker_lost, unlock.Request) == (False, None, Task.Request)
    assert (work.acks_late, work.reject_on_worker_lost) == (True, True)
    assert work.Request == f"{DurableRequest.__module__}:{DurableRequest.__name__}"
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        assert chord([work.s(1), work.s(2)])(total.s()).get(timeout=30) == 6
        assert group(work.s(n) for n in (3, 4)).apply_async().get(timeout=30) == [6, 8]
        assert work.starmap([(5,), (6,)]).apply_async().get(timeout=30) == [10, 12]
    assert sorted(calls) == [1, 2, 3, 4, 5, 6]
    assert [task for _, task, _ in journaled(app)] == ["total", "work", "work", "work", "work"]


# -- late ones --------------------------------------------------------------------------------------------------


def test_tasks_are_durable_whenever_they_are_made(make_app: Callable[..., Celery]) -> None:
    app = make_app("late", autofinalize=False)
    before = app.task(doubled, base=DurableTask, name="before", shared=False)
    assert DurableStep not in app.steps["worker"]
    app.finalize()
    after = app.task(doubled, base=DurableTask, name="after", shared=False)
    eager = app.task(doubled, base=DurableTask, name="eager", shared=False, lazy=False)
    assert [task.apply((n,)).get() for n, task in enumerate((before, after, eager))] == [0, 2, 4]
    assert [task for _, task, _ in journaled(app)] == ["after", "before", "eager"]
    assert DurableStep in app.steps["worker"]


def test_an_annotation_cannot_take_late_acknowledgement_away(
    make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app("annotated", settings={"task_annotations": {"*": {"acks_late": False}}, "task_acks_late": False})
    with caplog.at_level(logging.WARNING, logger="celery_durable"):
        work = app.task(doubled, base=DurableTask, name="work", shared=False)
        assert work.acks_late is True
    assert [record.getMessage() for record in caplog.records] == [
        "work: acks_late=False is ignored; a durable task acknowledges late and is requeued when its worker is lost"
    ]


@pytest.mark.parametrize("base", ["DurableTask", "a class of the user's", "the class of the app's tasks"])
def test_a_class_that_somebody_looked_at_leaves_its_tasks_alone(base: str, make_app: Callable[..., Celery]) -> None:
    """``inspect.getmembers()`` and ``help()`` read ``app`` on the class, which binds it."""
    app = make_app("seen", task_cls=DurableTask, settings={"task_annotations": {"*": {"rate_limit": "7/m"}}})

    class Base(DurableTask):
        abstract = True

    kind = {"DurableTask": DurableTask, "a class of the user's": Base}.get(base, app.Task)
    dict(inspect.getmembers(kind))
    inner = app.task(doubled, base=kind, name="inner", shared=False)

    @app.task(base=kind, name="outer", shared=False)
    def outer() -> int:
        return inner(2)

    app.finalize()
    assert (outer.rate_limit, inner.rate_limit) == ("7/m", "7/m")
    assert outer.request_stack is not inner.request_stack
    assert outer.apply(task_id="x").get() == 4
    assert journaled(app) == [("seen", "outer", "x")]
