"""Who no longer holds the lease can write nothing, by whatever way, on any database (G3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import LeaseLost
from celery_durable.runtime import Runtime
from celery_durable.store.records import (
    Batch,
    EffectCode,
    Entry,
    EntryKind,
    Fence,
    Opened,
    OpenRequest,
    State,
    StoredPayload,
)
from celery_durable.store.tables import metadata
from tests.support.lab import Lab, everywhere

pytestmark = everywhere

SOMETHING = StoredPayload(0, b"something")
RESULT = Entry("", 5, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "late", b"f" * 32, payload=SOMETHING)
INTENT = Entry("", 6, 0, EntryKind.INTENT, EffectCode.EXACTLY_ONCE_GUARDED, "charge", b"f" * 32, b"k" * 32)
ABORT = Entry("#aborted", 0, 0, EntryKind.ABORTED, None, "aborted", payload=SOMETHING)
FOLDED = Entry("", 0, 30_000, EntryKind.CHECKPOINT, None, "folded", payload=SOMETHING)


def open_(lab: Lab, owner: str) -> Opened:
    answer = Runtime.of(lab.app).ownership.open(OpenRequest("one", "job", owner, 0, lambda: SOMETHING))
    assert isinstance(answer, Opened)
    return answer


def batch(fence: Fence) -> Batch:
    return Batch(fence, 1, (RESULT,), steps=1)


#: Every way to write under a lease, and what it says where there is none; None: it raises :class:`LeaseLost`.
WRITES: dict[str, tuple[Callable[[Runtime, Fence], Any], Any]] = {
    "append": (lambda r, f: r.journal.append([batch(f)]), "fence"),
    "append again": (lambda r, f: r.journal.append([Batch(f, 1, (RESULT,), again=True)]), "fence"),
    "verify": (lambda r, f: r.journal.verify(f), False),
    "claim a key": (lambda r, f: r.journal.append_global(Batch(f, 1, ()), INTENT), "the fence"),
    "fold": (lambda r, f: r.journal.fold(Batch(f, 1, (FOLDED,)), 0), False),
    "renew": (lambda r, f: r.ownership.renew([f]), "fences"),
    "finish": (lambda r, f: r.ownership.finish(batch(f), "old", State.COMPLETED, SOMETHING), None),
    "fail": (lambda r, f: r.ownership.finish(batch(f), "old", State.FAILED, SOMETHING), None),
    "suspend": (lambda r, f: r.ownership.suspend(batch(f), "old", delay_ms=0, retries=1, envelope=SOMETHING), None),
    "replace": (lambda r, f: r.ownership.suspend(batch(f), "old", delay_ms=0, retries=0, task="other"), None),
    "release": (lambda r, f: r.ownership.release(batch(f), "old"), None),
    "park": (lambda r, f: r.ownership.park(batch(f), "old", State.AMBIGUOUS, SOMETHING), None),
    "restart": (lambda r, f: r.ownership.restart(batch(f), ABORT), None),
}

ANSWERS: dict[Any, Callable[[Fence], Any]] = {
    "fence": lambda fence: {fence},
    "the fence": lambda fence: fence,
    "fences": lambda fence: [fence],
    False: lambda fence: False,
}


def dump(lab: Lab) -> dict[str, list[Any]]:
    """Everything in the database."""
    with Runtime.of(lab.app).database.engine.connect() as connection:
        tables = metadata.sorted_tables
        return {table.name: sorted(map(repr, connection.execute(sa.select(table)).all())) for table in tables}


def taken_over(lab: Lab) -> None:
    lab.lose_lease()
    assert open_(lab, "new").fence.epoch == 2


def given_back_and_begun_again(lab: Lab) -> None:
    fence = Fence(lab.execution().pk, 1)
    Runtime.of(lab.app).ownership.release(Batch(fence, 1, ()), "old-one")
    assert open_(lab, "new").fence.epoch == 2


def cancelled(lab: Lab) -> None:
    lab.operations.cancel("one", "no longer wanted")


def gone(lab: Lab) -> None:
    for table in metadata.sorted_tables:
        if table.name.startswith("durable_"):
            lab.sql(sa.delete(table))


@pytest.mark.parametrize("change", [taken_over, given_back_and_begun_again, cancelled, gone])
def test_a_lost_lease_lets_nothing_through(lab: Lab, change: Callable[[Lab], None]) -> None:
    fence = open_(lab, "old").fence
    runtime = Runtime.of(lab.app)
    runtime.journal.append([Batch(fence, 1, (RESULT._replace(position=0),), steps=1)])
    change(lab)
    before = dump(lab)
    for name, (write, says) in WRITES.items():
        if says is None:
            with pytest.raises(LeaseLost):
                write(runtime, fence)
        else:
            assert write(runtime, fence) == ANSWERS[says](fence), name
        assert dump(lab) == before, name


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("name", WRITES)
def test_a_lease_that_is_held_lets_it_through(lab: Lab, name: str) -> None:
    """So that the test above does not pass because nothing ever gets through."""
    fence = open_(lab, "old").fence
    runtime = Runtime.of(lab.app)
    runtime.journal.append([Batch(fence, 1, (RESULT._replace(position=0),), steps=1)])
    # No clock is so fine that an update a moment later is sure to show.
    lab.sql(sa.update(metadata.tables["durable_execution"]).values(lease_until=10**15, wake_at=10**15))
    before = dump(lab)
    write, says = WRITES[name]
    answer = write(runtime, fence)
    assert says in (None, "the fence") or answer != ANSWERS[says](fence)
    assert dump(lab) != before


def test_an_owner_who_never_heard_that_its_last_commit_succeeded_may_repeat_it(lab: Lab) -> None:
    fence = open_(lab, "old").fence
    runtime = Runtime.of(lab.app)
    runtime.ownership.finish(batch(fence), "old", State.COMPLETED, SOMETHING)
    before = dump(lab)
    runtime.ownership.finish(batch(fence), "old", State.COMPLETED, SOMETHING)
    assert dump(lab) == before
    with pytest.raises(LeaseLost):
        runtime.ownership.finish(batch(fence), "old", State.FAILED, SOMETHING)
    with pytest.raises(LeaseLost):
        runtime.ownership.finish(batch(fence), "another", State.COMPLETED, SOMETHING)
    assert dump(lab) == before


def test_a_commit_for_several_executions_leaves_out_only_the_one_that_was_lost(lab: Lab) -> None:
    runtime = Runtime.of(lab.app)
    fences = []
    for number in range(4):
        answer = runtime.ownership.open(OpenRequest(f"e{number}", "job", f"owner-{number}", 0, lambda: SOMETHING))
        assert isinstance(answer, Opened)
        fences.append(answer.fence)
    lab.lose_lease("e2")
    runtime.ownership.open(OpenRequest("e2", "job", "thief", 0, lambda: SOMETHING))
    assert runtime.journal.append([batch(fence) for fence in fences]) == {fences[2]}
    written = ["5 RESULT late"]
    assert [lab.entries(f"e{number}") for number in range(4)] == [written, written, [], written]
