"""What executions of a process share when they commit, and what none of them takes from the others."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import EntryRefused, JournalUnavailable, LeaseLost
from celery_durable.journal.buffer import BATCH_BYTES, COMPANY, ExecutionBuffer
from celery_durable.journal.packing import unpacked
from celery_durable.journal.writer import JournalWriter
from celery_durable.store.journal import NotStorable
from celery_durable.store.records import Batch, EffectCode, Entry, EntryKind, Fence, StoredPayload
from tests.unit.test_writer import Bench, away


def entry(position: int, kind: EntryKind = EntryKind.RESULT, name: str = "s", size: int = 1) -> Entry:
    return Entry("", position, 0, kind, EffectCode.IDEMPOTENT, name, b"f" * 32, payload=StoredPayload(17, b"1" * size))


class Stub:
    """A journal that takes its time, and refuses what a test says.

    :param takes: what happens in a commit.
    """

    def __init__(self, takes: Callable[[Sequence[Batch]], Any]) -> None:
        self.commits: list[int] = []
        self._takes = takes

    def append(
        self, batches: Sequence[Batch], cancelled: set[Fence] | None = None, busy: set[Fence] | None = None
    ) -> set[Fence]:
        busy_now = self._takes(batches)
        if busy is not None and busy_now:
            busy |= busy_now
        self.commits.append(len(batches))
        return set()


def writer(takes: Callable[[Sequence[Batch]], Any], ack_timeout: float = 30.0) -> tuple[JournalWriter, Stub]:
    stub = Stub(takes)
    return JournalWriter(stub, flush_interval=60, ack_timeout=ack_timeout), stub  # type: ignore[arg-type]


def buffers(number: int) -> list[ExecutionBuffer]:
    return [ExecutionBuffer(Fence(n, 1), 1, 0.0) for n in range(number)]


def together(*jobs: Callable[[], None]) -> list[BaseException]:
    """Run these at the same time; what they raised."""
    raised: list[BaseException] = []

    def one(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return raised


# -- groups -----------------------------------------------------------------------------------------------------


def test_many_who_flush_again_and_again_share_their_commits_and_nobody_waits_in_vain() -> None:
    # Twice as long as one commit, and much less than all of them one after the other.
    shared, stub = writer(lambda batches: time.sleep(0.02), ack_timeout=2)

    def body(buffer: ExecutionBuffer) -> Callable[[], None]:
        def run() -> None:
            for position in range(10):
                shared.append(buffer, entry(position), finishes=True)
                shared.flush(buffer)

        return run

    many = buffers(40)
    assert together(*map(body, many)) == []
    assert [buffer.committed for buffer in many] == [10] * 40
    assert sum(stub.commits) == 400
    assert len(stub.commits) < 400 / 4


def test_a_body_that_waits_for_its_own_commit_pays_for_few_calls() -> None:
    # Counted, for a clock would say what else the machine did. A guarded step waits twice.
    shared, stub = writer(lambda batches: None)
    [buffer] = buffers(1)
    ready = [entry(position) for position in range(100)]
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for one in ready:
            shared.append(buffer, one, finishes=True)
            shared.flush(buffer)
    finally:
        sys.setprofile(before)
    assert len(stub.commits) == 100
    assert calls < 35 * 100


def test_a_commit_has_an_end_and_the_next_one_takes_the_rest() -> None:
    shared, stub = writer(lambda batches: None)
    many = buffers(2 * COMPANY + 50)
    for buffer in many:
        shared.append(buffer, entry(0))
    shared.flush(many[-1])
    assert stub.commits == [COMPANY, COMPANY, 50]


def test_large_entries_make_commits_of_few() -> None:
    shared, stub = writer(lambda batches: None)
    many = buffers(10)
    for buffer in many:
        shared.append(buffer, entry(0, size=BATCH_BYTES))
    shared.flush(many[-1])
    assert sum(stub.commits) == 10
    assert max(stub.commits) <= 3


def test_an_entry_is_in_when_its_flush_returns_whoever_else_appends_to_the_same_execution() -> None:
    done: list[Entry] = []
    shared, _ = writer(lambda batches: [done.extend(batch.entries) for batch in batches] and None)
    [buffer] = buffers(1)

    def branch(number: int) -> Callable[[], None]:
        def run() -> None:
            for position in range(200):
                mine = entry(number * 1000 + position)
                shared.append(buffer, mine)
                shared.flush(buffer)
                assert mine in done

        return run

    assert together(*(branch(number) for number in range(4))) == []
    assert len(done) == 800


def test_what_waits_for_nobody_has_an_end_too() -> None:
    shared, stub = writer(lambda batches: None)
    [buffer] = buffers(1)
    for position in range(20):
        shared.append(buffer, entry(position, size=BATCH_BYTES))
    assert len(stub.commits) > 2  # nobody has asked for these
    assert buffer.bytes <= 5 * BATCH_BYTES
    stuck, _ = writer(lambda batches: away())
    [other] = buffers(1)

    def go_on() -> None:
        for position in range(20):
            stuck.append(other, entry(position, size=BATCH_BYTES))

    with pytest.raises(JournalUnavailable):
        go_on()


# -- one who spoils it ------------------------------------------------------------------------------------------


def refuse_bad(batches: Sequence[Batch]) -> None:
    if any(one.name == "bad" for batch in batches for one in batch.entries):
        raise NotStorable("it is bad")


def test_whose_entry_is_refused_fails_alone_and_the_others_go_on() -> None:
    shared, _ = writer(refuse_bad)
    many = buffers(9)
    guilty = many[4]
    for buffer in many:
        for position in range(3):
            shared.append(buffer, entry(position, name="bad" if (buffer, position) == (guilty, 1) else "good"))
    raised = together(*(lambda buffer=buffer: shared.flush(buffer) for buffer in many))  # type: ignore[misc]
    assert [type(error) for error in raised] == [EntryRefused]
    assert [buffer.committed for buffer in many if buffer is not guilty] == [3] * 8
    # What it did besides is true, and kept.
    assert (guilty.committed, guilty.queue) == (3, [])
    with pytest.raises(EntryRefused):
        shared.append(guilty, entry(3))
    shared.append(many[0], entry(3))
    shared.flush(many[0])


def test_whose_row_is_locked_waits_alone() -> None:
    free = threading.Event()
    locked = Fence(0, 1)

    def takes(batches: Sequence[Batch]) -> set[Fence]:
        fences = {batch.fence for batch in batches}
        if fences == {locked}:
            assert free.wait(60)
        return {locked} & fences if len(fences) > 1 else set()

    shared, _ = writer(takes)
    first, *others = buffers(5)
    for buffer in (first, *others):
        shared.append(buffer, entry(0))
    shared.flush(others[0])
    waits = threading.Thread(target=shared.flush, args=(first,))
    waits.start()
    for position in range(1, 4):
        for buffer in others:
            shared.append(buffer, entry(position))
            shared.flush(buffer)
    assert (first.committed, waits.is_alive()) == (0, True)
    free.set()
    waits.join(60)
    assert first.committed == 1


# -- what a live process knows ----------------------------------------------------------------------------------


def test_what_has_happened_is_kept_after_a_failure_and_what_was_meant_is_not() -> None:
    bench = Bench()
    a = bench.open("a")
    bench.journal.before = [away]
    bench.append(a, "a0")
    with pytest.raises(JournalUnavailable):
        bench.writer.flush(a)
    for position, kind in enumerate([EntryKind.INTENT, EntryKind.RESULT, EntryKind.LOST, EntryKind.SCOPE], start=1):
        with pytest.raises(JournalUnavailable):
            bench.writer.append(a, entry(position, kind, kind.name))
    assert bench.writer.settle(a)
    assert bench.written(a) == ["a0", "RESULT", "LOST"]
    b = bench.open("b")
    bench.steal(b, "b")
    bench.append(b, "b0")
    with pytest.raises(LeaseLost):
        bench.writer.flush(b)
    left = len(b.queue)
    with pytest.raises(LeaseLost):
        bench.writer.append(b, entry(1))
    assert len(b.queue) == left


# -- what is thrown in ------------------------------------------------------------------------------------------


@pytest.fixture
def limit() -> Iterator[Callable[[float], None]]:
    """Throws a soft time limit into this thread, after so many seconds."""

    def strike(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_anywhere_in_the_writer_loses_nothing_and_holds_nothing(
    limit: Callable[[float], None], tmp_path: Path
) -> None:
    chance, bench = random.Random(3), Bench(flush_interval=0.01, url=f"sqlite:///{tmp_path / 'journal.db'}")
    a, other = bench.open("a"), bench.open("other")
    appended = struck = 0
    for number in range(400):
        try:
            bench.writer.append(a, entry(appended), finishes=True)
            appended += 1
            limit(chance.uniform(0.00002, 0.0006))
            bench.writer.flush(a)
            limit(0)
        except SoftTimeLimitExceeded:
            struck += 1
        limit(0)
        if number % 40 == 0:
            # The body goes on, and so do its neighbours.
            bench.writer.flush(a)
            bench.append(other, f"o{number}")
            bench.writer.flush(other)
            assert a.queue == []
    bench.writer.flush(a)
    assert struck > 20
    assert a.standing.refused is None
    steps = list(unpacked(bench.journal.segment(a.fence.pk, 1, "", 0, 10_000)))
    assert [step.position for step in steps] == list(range(appended))
