"""What the journal could not hold is refused where it comes in; and threads that die are started again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from celery import Celery

from celery_durable import ConfigurationError, DurableTask, Retry
from celery_durable.common.threads import Tended
from celery_durable.journal import flush_timer
from celery_durable.messaging.durable_id import check_id
from celery_durable.replay.patches import Patches
from celery_durable.runtime import leases as lease
from celery_durable.store.records import META, Entry, EntryKind, Journaled
from tests.support.wait import eventually


@pytest.mark.parametrize("id", ["i" * 256, "i\0i", "i\ud800", "i\x1b[2J", "i ", ""])
def test_a_task_id_that_cannot_be_stored_or_told_from_another_is_refused(id: str) -> None:  # noqa: A002
    with pytest.raises(ConfigurationError, match="task_id"):
        check_id(id, "task_id")


def test_a_step_has_no_more_tries_than_the_journal_can_count() -> None:
    assert Retry(max_attempts=10_000).max_attempts == 10_000
    with pytest.raises(ConfigurationError, match="sleep"):
        Retry(max_attempts=10_001)


@pytest.mark.parametrize("change", ["x" * 300, "a\0b", "\ud800", ""])
def test_the_name_of_a_change_is_one_that_can_be_stored(change: str) -> None:
    with pytest.raises(ConfigurationError):
        Patches().take(change, True, [].append)


def test_changes_have_numbers_of_their_own_whatever_was_asked_for_before() -> None:
    written: list[Entry] = []

    def deploy(*asked: tuple[str, bool]) -> list[bool]:
        patches = Patches()
        for one in written:
            row = (1, META, one.position, 0, EntryKind.PATCH, None, one.name, *[None] * 8)
            patches.load(Journaled(*row))  # type: ignore[arg-type]
        return [patches.take(change, new, written.append) for change, new in asked]

    assert deploy(("a", True)) == [True]
    assert deploy(("a", False), ("b", False), ("c", True)) == [True, False, True]
    assert deploy(("a", False), ("c", False), ("d", True)) == [True, True, True]
    assert [one.name for one in written] == ["a", "c", "d"]
    assert len({one.position for one in written}) == 3


def test_a_thread_that_dies_is_started_again_by_whoever_looks() -> None:
    runs: list[int] = []
    stay = threading.Event()

    def work(sleep: Callable[[float], None]) -> None:
        runs.append(1)
        if len(runs) < 3:
            raise SystemExit
        stay.wait(60)

    thread = Tended(work, "test-tended")
    eventually(lambda: thread.ensure() and len(runs) == 3)
    stay.set()


def test_one_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    thread = Tended(lambda sleep: started.set(), "test-tended")
    with monkeypatch.context() as patch:

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        assert not thread.ensure()
    eventually(lambda: thread.ensure() or started.is_set())
    assert started.wait(30)


def test_one_that_has_nothing_to_do_ends_and_is_there_again_when_it_has() -> None:
    work: list[str] = []
    done: list[str] = []

    def target(sleep: Callable[[float], None]) -> None:
        while work:
            done.append(work.pop())

    thread = Tended(target, "test-tended", needed=lambda: bool(work))
    for number in range(200):
        work.append(str(number))
        thread.ensure()
    eventually(lambda: len(done) == 200)
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "test-tended"])


def test_a_process_without_executions_has_no_thread_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_IDLE", 0.0)
    monkeypatch.setattr(flush_timer, "_IDLE", 0.0)
    app = Celery("idle", set_as_current=False)
    app.conf.update(durable_database_url="sqlite://", durable_namespace="idle", task_store_eager_result=False)
    before = {one.ident for one in threading.enumerate()}

    @app.task(base=DurableTask, bind=True, name="work")
    def work(task: DurableTask) -> str:
        return task.durable.step("one", lambda: "done")

    for number in range(2):
        assert work.apply(task_id=f"w{number}").get() == "done"
        eventually(lambda: not [one for one in threading.enumerate() if one.ident not in before])
