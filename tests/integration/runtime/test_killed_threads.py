"""Threads of the library's own that are killed, or that could not be started, are there again when they are needed."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import DurableTask
from celery_durable.common import threads
from celery_durable.common.threads import Tended
from celery_durable.journal import flush_timer
from celery_durable.runtime import Runtime
from celery_durable.runtime import leases as lease
from celery_durable.store import migrations
from celery_durable.store.tables import executions, journal
from celery_durable.store.watchdog import Watchdog
from celery_durable.worker.bootstep import DurableStep
from celery_durable.worker.errands import QueuedControl
from celery_durable.worker.service import Service
from tests.support.databases import JournalDatabase
from tests.support.wait import eventually

FLUSH, HEART, WATCHDOG = "durable-flush", "durable-heartbeat", "durable-watchdog"


#: Threads of earlier tests, which may take a moment to end.
_BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _among_others() -> None:
    _BEFORE.clear()
    _BEFORE.update(threading.enumerate())


def alive(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == name and one not in _BEFORE]


def kill(*names: str) -> None:
    """Throw into these threads what no thread is prepared for, and wait until they have ended."""
    killed = [one for name in names for one in alive(name)]
    assert len(killed) >= len(names), names
    for one in killed:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(one.ident or 0), ctypes.py_object(SystemExit))
    for one in killed:
        one.join(60)
        assert not one.is_alive()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The system has no more threads for us, as long as there is something in this list; it notes who asked."""
    start = threading.Thread.start
    room: list[str] = []

    def refuse(self: threading.Thread) -> None:
        if room and self.name.startswith("durable-"):
            room.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(threads, "_AGAIN", 0.0)
    yield room
    room.clear()


class Body:
    """A body that runs in a process of its own application, on a database that others can look into."""

    def __init__(self, database: JournalDatabase) -> None:
        migrations.upgrade(database.url)
        self.app = Celery("threads", set_as_current=False)
        self.app.conf.update(
            {**database.conf, "durable_namespace": "threads", "durable_lease_timeout": 3.0},
            task_store_eager_result=False,
        )
        self._look = database.engine()

    def run(self, act: Callable[[Any], None]) -> None:
        @self.app.task(base=DurableTask, bind=True, name="work", shared=False)
        def work(task: DurableTask) -> str:
            act(task.durable)
            return "done"

        assert work.apply(task_id="one").get() == "done"

    def entries(self) -> int:
        """How many are committed."""
        with self._look.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(journal)).scalar_one())

    def await_entries(self, number: int) -> None:
        """Wait until so many steps are committed, of themselves."""
        eventually(lambda: self.entries() == number, 60)

    def await_renewal(self) -> None:
        """Wait until the lease is renewed, by whoever does it."""
        before = self._until()
        eventually(lambda: self._until() > before, 60)

    def _until(self) -> int:
        with self._look.connect() as connection:
            return int(connection.execute(sa.select(executions.c.lease_until)).scalar_one())


@pytest.fixture
def body(database: JournalDatabase) -> Iterator[Body]:
    made = Body(database)
    yield made
    runtime = Runtime.of(made.app)
    runtime.writer.timer.end()
    runtime.keeper.end()
    runtime.database.dispose()


@pytest.mark.parametrize("killed", [[FLUSH], [HEART], [FLUSH, HEART]], ids=["flush", "heartbeat", "both"])
def test_the_flush_timer_and_the_heartbeat_come_back_while_a_body_runs(body: Body, killed: list[str]) -> None:
    def act(ctx: Any) -> None:
        ctx.step("first", int)
        body.await_entries(1)
        eventually(lambda: alive(FLUSH) and alive(HEART))
        kill(*killed)
        # A plain step, for whose commit nobody asks.
        ctx.step("second", int)
        body.await_entries(2)
        body.await_renewal()
        kill(*killed)
        ctx.step("third", int)
        body.await_entries(3)
        body.await_renewal()

    body.run(act)


@pytest.mark.parametrize("killed", [FLUSH, HEART])
def test_one_looks_after_the_other_while_the_body_computes(
    body: Body, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Nothing is appended, and the pauses after which both end for want of work have passed."""
    for module in (lease, flush_timer):
        monkeypatch.setattr(module, "_IDLE", 0.0)

    def act(ctx: Any) -> None:
        ctx.step("first", int)
        body.await_entries(1)
        eventually(lambda: alive(FLUSH) and alive(HEART))
        for _ in range(2):
            body.await_renewal()
            kill(killed)
            eventually(lambda: alive(killed), 60)
        body.await_renewal()

    body.run(act)


def test_a_body_without_threads_goes_on_and_gets_them_when_there_is_room(body: Body, crowded: list[str]) -> None:
    def act(ctx: Any) -> None:
        ctx.step("first", int)
        assert {FLUSH, HEART} <= set(crowded)
        assert body.entries() == 0
        # The body itself commits what is overdue.
        eventually(lambda: ctx.step("more", int) or body.entries(), 60)
        crowded.clear()
        ctx.step("last", int)
        eventually(lambda: alive(FLUSH) and alive(HEART), 60)
        body.await_renewal()

    crowded.append("full")
    body.run(act)


@pytest.mark.databases("sqlite")
def test_neither_of_the_two_keeps_the_other_when_nothing_runs(body: Body) -> None:
    body.run(lambda ctx: ctx.step("first", int))
    runtime = Runtime.of(body.app)
    eventually(lambda: not alive(FLUSH) and not alive(HEART), 60)
    runtime.writer.timer.companion()
    assert not alive(HEART)


@pytest.mark.parametrize("begun", [False, True])
def test_a_limit_that_strikes_who_starts_a_thread_leaves_none_that_only_seems_to_live(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    runs: list[bool] = []
    stay = threading.Event()
    thread = Tended(lambda sleep: runs.append(stay.wait(60)), "test-tended")
    start = threading.Thread.start

    def struck(self: threading.Thread) -> None:
        if begun:
            start(self)
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", struck)
        with pytest.raises(SoftTimeLimitExceeded):
            thread.ensure()
    assert thread.ensure()
    eventually(lambda: len(alive("test-tended")) == 1)
    stay.set()
    eventually(lambda: runs == [True])


# -- the one that ends waits ------------------------------------------------------------------------------------


def ends_a_wait(watchdog: Watchdog) -> bool:
    """Whether somebody shuts a connection down that is past its time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(30)
        watchdog.guard(os.dup(ours.fileno()), time.monotonic())
        try:
            return theirs.recv(1) == b""
        except TimeoutError:
            return False


def test_the_watchdog_is_there_again_with_the_next_connection_that_is_guarded() -> None:
    watchdog = Watchdog(0.01)
    assert ends_a_wait(watchdog)
    mine = alive(WATCHDOG)
    kill(WATCHDOG)
    assert ends_a_wait(watchdog)
    assert not set(mine) & set(alive(WATCHDOG))


def test_a_watchdog_that_could_not_be_started_is_tried_again(crowded: list[str]) -> None:
    watchdog = Watchdog(0.01)
    crowded.append("full")
    ours, theirs = socket.socketpair()
    # It is no error of whoever uses the database.
    assert watchdog.forget(watchdog.guard(ours.fileno(), time.monotonic() + 60))
    crowded.clear()
    assert ends_a_wait(watchdog)
    ours.close()
    theirs.close()


# -- those of a worker ------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> Celery:
    app = Celery("worker", broker="memory://", set_as_current=False)
    app.conf.update(durable_database_url="sqlite://", durable_namespace="threads", durable_recovery_interval=0.1)
    return app


def test_the_thread_of_a_worker_s_errands_comes_back_with_the_next(
    app: Celery, monkeypatch: pytest.MonkeyPatch, crowded: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr("celery_durable.worker.errands.handle", lambda app, errand: done.append(errand["id"]))
    control = QueuedControl(app)
    crowded.append("full")
    control._do("cancel", id="one")
    crowded.clear()
    control._do("cancel", id="two")
    eventually(lambda: done == ["one", "two"])
    kill("durable-errands")
    control._do("cancel", id="three")
    eventually(lambda: done == ["one", "two", "three"])
    control.stop()
    eventually(lambda: not alive("durable-errands"))


class Timer:
    """A worker's, which the test lets strike."""

    def __init__(self) -> None:
        self.repeated: list[Callable[[], object]] = []

    def call_repeatedly(self, seconds: float, job: Callable[[], object], *_: Any) -> SimpleNamespace:
        self.repeated.append(job)
        return SimpleNamespace(cancel=lambda: self.repeated.remove(job))

    def strike(self) -> None:
        for job in list(self.repeated):
            job()


def test_recovery_and_retention_come_back_in_a_worker_of_threads(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.durable_retention = {"completed": 3600}
    rounds: list[int] = []
    monkeypatch.setattr(Service, "round", lambda self: rounds.append(1) or 0.05)
    timer = Timer()
    worker = SimpleNamespace(app=app, timer=timer, pool_cls="celery.concurrency.thread:TaskPool", use_eventloop=False)
    step = DurableStep(worker)
    step.start(worker)
    eventually(lambda: rounds and alive("durable-recovery") and alive("durable-retention"))
    with caplog.at_level(logging.ERROR):
        kill("durable-recovery")
    assert "the thread durable-recovery has died and is restarted" in caplog.text
    timer.strike()
    before = len(rounds)
    eventually(lambda: len(rounds) > before + 2)
    kill("durable-retention")
    eventually(lambda: alive("durable-retention"))
    step.stop(worker)
    assert timer.repeated == []
    eventually(lambda: not alive("durable-recovery"))
