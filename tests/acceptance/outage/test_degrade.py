"""``durable_on_unavailable = "degrade"``: bodies run on without their journal."""

from __future__ import annotations

import pytest

from celery_durable.store.records import EntryKind
from tests.support.wait import eventually

from .arena import Arena
from .servers import Fragile, on_each_server

pytestmark = [pytest.mark.brokers("redis"), on_each_server]

DEGRADE = {"durable_on_unavailable": "degrade"}
WARNING = "continues WITHOUT durability (durable_on_unavailable = 'degrade'; run {} of this process)"


def test_a_body_starts_without_the_journal_and_nothing_of_it_is_recorded(fragile: Arena, server: Fragile) -> None:
    worker = fragile.start(durable=DEGRADE)
    server.stop()
    for number in (1, 2):
        fragile.send(f"chain-{number}", "chain", 1)
        assert fragile.result(f"chain-{number}").get(timeout=60) == ["plain 0", "pay 0"]
        assert f"chain-{number}] {WARNING.format(number)}: [CD501] " in worker.log()
    server.start()
    assert fragile.operations.find(limit=10) == []
    # Only the keys are what they would have been: the other side can tell that it was asked before.
    fragile.result("chain-1").forget()
    fragile.send("chain-1", "chain", 1)
    assert fragile.result("chain-1").get(timeout=60) == ["plain 0", "pay 0"]
    for step in ("plain 0", "pay 0"):
        first, second = fragile.fired("chain-1", step)
        assert first["key"] == second["key"]
        assert first["key"] != fragile.fired("chain-2", step)[0]["key"]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_a_body_goes_on_when_the_journal_is_lost_and_is_not_run_again(
    fragile: Arena, server: Fragile, fails: bool
) -> None:
    worker = fragile.start(durable=DEGRADE)
    fragile.send("one", "ends", fails)
    eventually(lambda: fragile.ledger.count("holding"), 60)
    server.crash()
    fragile.open_gate("release")
    outcome = fragile.result("one").get(timeout=60, propagate=False)
    assert repr(outcome) == ("LookupError('it failed')" if fails else "'released'")
    assert f"one] {WARNING.format(1)}: [CD501] " in worker.log()
    server.start()
    # Its end is recorded late. What it did without the journal is not, but for what it was about to do when that broke.
    eventually(lambda: fragile.row("one").state == ("failed" if fails else "completed"), 60)
    entries = [f"{EntryKind(entry.kind).name} {entry.name}" for entry in fragile.journal("one")]
    assert entries == ["INTENT before", "RESULT before", "INTENT after"]
    # Nobody is to run it again: not recovery, when the lease runs out, and not a second message.
    assert fragile.row("one").wake_at is None
    fragile.send("one", "ends", fails)
    fragile.await_said(worker, "a message of tests.acceptance.outage.app.ends[one] is dropped: it has ended")
    assert [entry["name"] for entry in fragile.ledger.entries(execution="one")] == ["before", "holding", "after"]
