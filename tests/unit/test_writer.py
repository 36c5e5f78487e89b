"""The writer: how many commits for which appends, what shares one, and what becomes of a commit that failed."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celery_durable import JournalUnavailable, LeaseLost
from celery_durable.journal.packing import unpack
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
from celery_durable.store import Database, Journal, Ownership
from celery_durable.store.records import Batch, EffectCode, Entry, EntryKind, Fence, Opened, OpenRequest, StoredPayload
from tests.support.wait import eventually


class WatchedJournal(Journal):
    """A journal, in memory by default, that tells of each commit, and lets a test stand in its way."""

    def __init__(self, url: str = "sqlite://") -> None:
        self.database = Database(url, timeout=5)
        super().__init__(self.database, lease_ms=60_000)
        #: What each commit held: names of entries, by execution.
        self.commits: list[list[str]] = []
        #: Called before or after the real commit; taken from the front, one for each commit.
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []

    def append(
        self, batches: Sequence[Batch], cancelled: set[Fence] | None = None, busy: set[Fence] | None = None
    ) -> set[Fence]:
        if self.before:
            self.before.pop(0)()
        lost = super().append(batches, cancelled, busy)
        self.commits.append([entry.name for batch in batches for entry in batch.entries])
        if self.after:
            self.after.pop(0)()
        return lost


def away() -> None:
    raise JournalUnavailable("the database is away.")


def well() -> None:
    """Nothing stands in the way."""


class Bench:
    """A writer over a watched journal, and executions that write."""

    def __init__(self, flush_interval: float = 60.0, ack_timeout: float = 10.0, url: str = "sqlite://") -> None:
        self.journal = WatchedJournal(url)
        self.ownership = Ownership(self.journal.database, namespace="test", lease_ms=60_000, max_attempts=10)
        self.writer = JournalWriter(self.journal, flush_interval=flush_interval, ack_timeout=ack_timeout)
        self._positions: dict[Fence, int] = {}

    def open(self, name: str, owner: str = "owner") -> ExecutionBuffer:
        request = OpenRequest(name, "job", f"{owner}-{name}", 0, lambda: StoredPayload(0, b""))
        opened = self.ownership.open(request)
        assert isinstance(opened, Opened)
        return ExecutionBuffer(opened.fence, 1, 0.0)

    def append(self, buffer: ExecutionBuffer, *names: str) -> None:
        for name in names:
            position = self._positions.get(buffer.fence, 0)
            self._positions[buffer.fence] = position + 1
            self.writer.append(buffer, Entry("", position, 0, EntryKind.RESULT, None, name), finishes=True)

    def written(self, buffer: ExecutionBuffer) -> list[str]:
        """What is in the journal, in the order in which a body asks."""
        return [row.name for row in self.journal.segment(buffer.fence.pk, 1, "", 0, 10_000)]

    def steal(self, buffer: ExecutionBuffer, name: str) -> None:
        """Another owner takes the execution over."""
        self.ownership.release(Batch(buffer.fence, 1, ()), "x")
        self.open(name, owner="thief")


@pytest.fixture
def bench() -> Bench:
    """One whose timer does not strike in the time of a test."""
    return Bench()


# -- how many commits -------------------------------------------------------------------------------------------


def test_nothing_to_write_is_no_commit(bench: Bench) -> None:
    bench.writer.flush(bench.open("a"))
    assert bench.journal.commits == []


def test_whatever_was_appended_is_one_commit_in_its_order(bench: Bench) -> None:
    a = bench.open("a")
    names = [f"step-{n}" for n in range(100)]
    bench.append(a, *names, "intent")
    assert bench.written(a) == []
    bench.writer.flush(a)
    bench.writer.flush(a)
    assert bench.journal.commits == [[*names, "intent"]]
    assert bench.written(a) == [*names, "intent"]
    assert (a.last, a.committed, a.queue) == (101, 101, [])


def test_a_commit_that_one_needs_takes_along_what_the_others_have(bench: Bench) -> None:
    a, b, c = (bench.open(name) for name in "abc")
    bench.append(a, "a1")
    bench.append(b, "b1", "b2")
    bench.writer.flush(c)
    assert bench.journal.commits == []
    bench.append(c, "c1")
    bench.writer.flush(c)
    assert [sorted(commit) for commit in bench.journal.commits] == [["a1", "b1", "b2", "c1"]]
    for buffer in (a, b):
        bench.writer.flush(buffer)
    assert len(bench.journal.commits) == 1


def test_all_who_wait_during_one_commit_share_the_next(bench: Bench) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert leave.wait(30)

    bench.journal.before = [hold]
    buffers = [bench.open(f"e{n}") for n in range(6)]
    threads = []
    for number, buffer in enumerate(buffers):
        bench.append(buffer, f"step-{number}")
        threads.append(threading.Thread(target=bench.writer.flush, args=(buffer,)))
        threads[-1].start()
        if number == 0:
            assert entered.wait(30)
    leave.set()
    for thread in threads:
        thread.join(30)
    assert [len(commit) for commit in bench.journal.commits] == [1, 5]
    assert all(buffer.committed == 1 for buffer in buffers)


def test_what_nobody_waits_for_is_committed_by_the_timer_together() -> None:
    bench = Bench(flush_interval=0.2)
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    bench.append(b, "b1")
    bench.append(a, "a2")
    eventually(lambda: (a.committed, b.committed) == (2, 1))
    assert [sorted(commit) for commit in bench.journal.commits] == [["a1", "a2", "b1"]]
    bench.append(b, "b2")
    eventually(lambda: b.committed == 2)
    assert bench.journal.commits[1:] == [["b2"]]


# -- leases -----------------------------------------------------------------------------------------------------


def test_a_lost_lease_hits_only_its_own_execution_and_for_good(bench: Bench) -> None:
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    bench.append(b, "b1")
    bench.steal(a, "a")
    bench.writer.flush(b)
    assert (bench.written(a), bench.written(b)) == ([], ["b1"])
    for use in (lambda: bench.append(a, "a2"), lambda: bench.writer.flush(a), lambda: bench.writer.drain(a)):
        with pytest.raises(LeaseLost):
            use()
    assert bench.writer.settle(a)
    bench.append(b, "b2")
    bench.writer.flush(b)
    assert (bench.written(a), bench.written(b)) == ([], ["b1", "b2"])


def test_a_commit_tells_when_the_lease_was_verified(bench: Bench) -> None:
    a = bench.open("a")
    assert a.verified_at == 0
    bench.append(a, "a1")
    bench.writer.flush(a)
    assert a.verified_at > 0


# -- commits that fail ------------------------------------------------------------------------------------------

#: The database did not take the commit, or took it and could not say so: nobody can tell one from the other.
FATES = {"refused": "before", "taken": "after"}


@pytest.fixture(params=FATES)
def fate(request: pytest.FixtureRequest) -> str:
    return FATES[request.param]


def test_who_waited_for_a_commit_that_failed_is_told_and_gets_no_further(bench: Bench, fate: str) -> None:
    a = bench.open("a")
    bench.append(a, "a1")
    setattr(bench.journal, fate, [away])
    for _ in range(2):
        with pytest.raises(JournalUnavailable, match="the database is away"):
            bench.writer.flush(a)
    with pytest.raises(JournalUnavailable):
        bench.append(a, "a2")


def test_what_was_in_a_failed_commit_is_written_once_and_first(bench: Bench, fate: str) -> None:
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1", "a2")
    bench.append(b, "b1")
    setattr(bench.journal, fate, [away])
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(b)
    # The bystander was not asked and goes on; its next commit brings all.
    assert (a.standing.refused, a.committed, len(a.queue)) == (None, 0, 1)
    bench.append(a, "a3")
    bench.writer.flush(a)
    assert (bench.written(a), bench.written(b)) == (["a1", "a2", "a3"], ["b1"])
    assert (a.committed, a.queue) == (3, [])
    assert bench.writer.settle(b)
    assert bench.written(b) == ["b1"]


def test_a_pack_in_a_failed_commit_is_written_once(bench: Bench, fate: str) -> None:
    a, b = bench.open("a"), bench.open("b")

    def append(first: int, last: int) -> None:
        for position in range(first, last):
            step = Entry("", position, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, f"a{position}", b"f" * 32)
            bench.writer.append(a, step._replace(payload=StoredPayload(17, b"1")), finishes=True)

    append(0, 6)
    bench.append(b, "b1")
    setattr(bench.journal, fate, [away])
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(b)
    append(6, 11)
    bench.writer.flush(a)
    rows = bench.journal.segment(a.fence.pk, 1, "", 0, 100)
    assert [row.name for row in rows] == ["checkpoint", "checkpoint"]
    assert [step.name for row in rows for step in unpack(row)] == [f"a{position}" for position in range(11)]
    assert (a.committed, a.last, a.queue) == (11, 11, [])


def test_an_abandoned_execution_is_settled_when_the_database_answers(bench: Bench, fate: str) -> None:
    a = bench.open("a")
    bench.append(a, "a1")
    setattr(bench.journal, fate, [away])
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(a)
    bench.journal.before = [away]
    assert not bench.writer.settle(a)
    assert bench.writer.settle(a)
    assert bench.written(a) == ["a1"]


def test_buffered_entries_outlast_failures_that_nobody_waited_for() -> None:
    bench = Bench(flush_interval=0.01)
    bench.journal.before = [away, away]
    a = bench.open("a")
    bench.append(a, "a1")
    eventually(lambda: a.committed == 1)
    assert a.standing.refused is None
    assert bench.written(a) == ["a1"]


def test_a_commit_that_hangs_is_waited_for_no_longer_than_the_bound() -> None:
    bench = Bench(ack_timeout=0.1)
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        assert leave.wait(30)

    bench.journal.before = [hang]
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    slow = threading.Thread(target=bench.writer.flush, args=(a,))
    slow.start()
    assert entered.wait(30)
    bench.append(b, "b1")
    with pytest.raises(JournalUnavailable) as told:
        bench.writer.flush(b)
    assert told.value.message == "no commit was possible within 0.1 s (durable_ack_timeout)."
    with pytest.raises(JournalUnavailable):
        bench.writer.drain(b)
    leave.set()
    slow.join(30)
    assert bench.written(a) == ["a1"]
    assert bench.writer.settle(b)
    assert bench.written(b) == ["b1"]


# -- the end of a run -------------------------------------------------------------------------------------------


def test_what_is_left_goes_with_the_outcome_and_with_no_other_commit(bench: Bench) -> None:
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    bench.writer.flush(a)
    bench.append(a, "a2", "a3")
    batch = bench.writer.drain(a)
    assert ([entry.name for entry in batch.entries], batch.steps, a.closed) == (["a2", "a3"], 2, True)
    bench.append(b, "b1")
    bench.writer.flush(b)
    assert bench.journal.commits == [["a1"], ["b1"]]


def test_what_has_an_unknown_fate_is_settled_before_the_outcome(bench: Bench, fate: str) -> None:
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    bench.append(b, "b1")
    setattr(bench.journal, fate, [away])
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(b)
    bench.append(a, "a2")
    assert bench.writer.drain(a).entries == ()
    assert bench.written(a) == ["a1", "a2"]


def test_where_that_fails_too_there_is_no_outcome(bench: Bench) -> None:
    a, b = bench.open("a"), bench.open("b")
    bench.append(a, "a1")
    bench.append(b, "b1")
    bench.journal.before = [away, away]
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(b)
    with pytest.raises(JournalUnavailable):
        bench.writer.drain(a)
    assert bench.writer.settle(a)
    assert bench.written(a) == ["a1"]


def test_a_batch_whose_outcome_could_not_be_committed_is_not_lost(bench: Bench) -> None:
    a = bench.open("a")
    bench.append(a, "a1")
    bench.writer.drain(a)
    bench.writer.reopen(a)
    assert bench.writer.settle(a)
    assert bench.written(a) == ["a1"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_every_entry_is_written_once_and_in_order(seed: int) -> None:
    """Appends and flushes of three executions by chance, while every third commit fails in one way or the other."""
    chance, bench = random.Random(seed), Bench()
    buffers = {name: bench.open(name) for name in "abc"}
    taken: dict[str, list[str]] = {name: [] for name in buffers}
    for number in range(60):
        name = chance.choice("abc")
        buffer = buffers[name]
        kinds: list[Any] = [chance.choice([well, well, away]) for _ in range(2)]
        bench.journal.before, bench.journal.after = [kinds[0]], [kinds[1]]
        # What has happened is kept, also where the body is over because of an earlier failure.
        taken[name].append(f"{name}{number}")
        with contextlib.suppress(JournalUnavailable):
            bench.append(buffer, f"{name}{number}")
            if chance.random() < 0.4:
                bench.writer.flush(buffer)
    bench.journal.before, bench.journal.after = [], []
    assert any(taken.values())
    for name, buffer in buffers.items():
        assert bench.writer.settle(buffer)
        assert bench.written(buffer) == taken[name]
