"""Steps that share rows of the journal outlive the death of their process as others do."""

from __future__ import annotations

from collections import Counter

import pytest

from celery_durable.store.records import EntryKind, State

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

STEPS = 130
#: Where the process dies, and whether what came before is on disk by then.
DEATHS = {"step.before_intent": False, "step.after_intent": True, "effect.after": True, "step.after_result": True}
#: Only what somebody waits for is committed.
SETTINGS = {"durable_lease_timeout": 60, "durable_recovery_interval": 0.2, "durable_flush_interval": 15}


def test_quick_steps_that_were_committed_are_not_done_again(arena: Arena):
    for point in DEATHS:
        arena.arm(point, point, step="edge")
    arena.worker(durable=SETTINGS, concurrency=2)
    for point in DEATHS:
        arena.send(point, "quick", STEPS)
    arena.await_settled(list(DEATHS))
    assert arena.unreached() == []
    for point, committed in DEATHS.items():
        row = arena.row(point)
        # Where nothing was committed, there was nothing to take over.
        assert (row.state, row.attempts, row.generation) == (State.COMPLETED, int(committed), 1)
        assert row.steps == 2 * STEPS + 1
        assert arena.result(point).get(timeout=30) == sum(range(2 * STEPS))
        done = Counter(entry["number"] for entry in arena.fired(point, "quick"))
        assert done == dict.fromkeys(range(STEPS), 1 if committed else 2) | dict.fromkeys(range(STEPS, 2 * STEPS), 1)
        kinds = Counter(EntryKind(entry.kind) for entry in arena.journal(point))
        # A hundred and thirty before, and as many after the guarded one.
        assert (kinds[EntryKind.CHECKPOINT], kinds[EntryKind.RESULT]) == (4, 1)
