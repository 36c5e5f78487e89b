"""The database server dies while executions run, before they start, and when they are published."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_durable import DurableTask, JournalUnavailable, outbox_batch
from celery_durable.runtime import Runtime
from tests.support.wait import eventually

from .arena import ACK, APP, LEASE, SETTINGS, Arena
from .servers import Fragile, FragilePostgreSQL, on_each_server

pytestmark = pytest.mark.brokers("redis")

POSTPONED = "cannot continue without its journal; its message is delivered again"


@on_each_server
def test_a_crash_of_the_database_repeats_nothing_and_loses_nothing(fragile: Arena, server: Fragile) -> None:
    worker = fragile.start(concurrency=4)
    names = fragile.send_chains(6, 12)
    fragile.await_fired(10)
    server.crash()
    # Bodies and messages do not wait for ever, but come back later.
    fragile.await_said(worker, POSTPONED, 4)
    assert f"did not commit within {ACK:g} s (durable_ack_timeout)" in worker.log()
    server.start()
    fragile.check_chains(names, 12)
    fragile.await_empty_broker()


@on_each_server
def test_a_worker_that_starts_without_its_database_waits_for_it(fragile: Arena, server: Fragile) -> None:
    server.stop()
    worker = fragile.start(concurrency=2)
    names = fragile.send_chains(2, 2)
    fragile.await_said(worker, POSTPONED, 2)
    fragile.await_said(worker, "recovery failed, and is tried again: [CD501]")
    server.start()
    fragile.check_chains(names, 2)


@on_each_server
def test_what_began_after_an_outage_is_taken_over_like_anything_else(fragile: Arena, server: Fragile) -> None:
    """Its message was postponed, and that is no reason to drop it when it is sent again later."""
    server.stop()
    first = fragile.start()
    fragile.send("one", "cut_off")
    fragile.await_said(first, POSTPONED)
    server.start()
    eventually(lambda: fragile.ledger.count("holding"), 60)
    first.crash()
    fragile.start()
    fragile.open_gate("second")
    assert fragile.result("one").get(timeout=60) == "by the second"
    assert fragile.row("one").attempts == 1


@on_each_server
def test_what_was_done_while_the_database_is_away_is_known_when_it_is_back(fragile: Arena, server: Fragile) -> None:
    """A guarded operation is under way, for longer than a lease. Its process lives, so nothing is in doubt."""
    worker = fragile.start(concurrency=2)
    fragile.send("ends-meanwhile", "held", "first")
    fragile.send("ends-later", "held", "second")
    fragile.await_fired(2, "held")
    server.crash()
    fragile.open_gate("first")
    fragile.await_said(worker, "ends-meanwhile] cannot continue without its journal")
    # Leases run out, and recovery and a postponed message stand ready to take over.
    fragile.await_said(worker, "the heartbeat could not reach the journal", 3)
    fragile.send("chain-0", "chain", 1)
    fragile.await_said(worker, "chain-0] cannot continue without its journal", 2)
    server.start()
    assert fragile.result("ends-meanwhile").get(timeout=60) == "released"
    fragile.check_chains(["chain-0"], 1)
    lease = fragile.row("ends-later").lease_until
    eventually(lambda: fragile.row("ends-later").lease_until >= lease + LEASE * 1000, 60, "nobody renews the lease")
    fragile.open_gate("second")
    assert fragile.result("ends-later").get(timeout=60) == "released"
    for name in ("ends-meanwhile", "ends-later"):
        assert [effect["name"] for effect in fragile.ledger.entries(execution=name)] == ["before", "held", "after"]
        assert fragile.decisions(name) == []
        assert fragile.row(name).attempts == 0


@pytest.mark.parametrize("frozen", [False, True], ids=["refused", "unanswered"])
@on_each_server
def test_a_step_that_was_only_announced_is_not_in_doubt(fragile: Arena, server: Fragile, frozen: bool) -> None:
    """Its intent could not be committed, or perhaps it was; but the operation did not start, and its process knows."""
    worker = fragile.start()
    fragile.send("one", "ends", False)
    eventually(lambda: fragile.ledger.count("holding"), 60)
    if frozen:
        server.freeze()
    else:
        server.crash()
    fragile.open_gate("release")
    fragile.await_said(worker, POSTPONED)
    assert fragile.fired("one", "after") == []
    if frozen:
        server.thaw()
    else:
        server.start()
    assert fragile.result("one").get(timeout=60) == "released"
    assert len(fragile.fired("one", "after")) == 1
    assert fragile.decisions("one") == []


def test_an_execution_that_the_crash_undid_begins_again(fragile: Arena, server: FragilePostgreSQL) -> None:
    """The row with which it began need not be on disk; its message still stands."""
    worker = fragile.start()
    server.leave_unwritten()
    # A first delivery would be recorded with its first commit, which is waited for.
    fragile.arm("forgotten", "task.before_open")
    fragile.send("forgotten", "beginning")
    eventually(lambda: fragile.ledger.count("holding"), 60)
    server.crash()
    server.start()
    assert fragile.operations.find(limit=10) == []
    fragile.open_gate("release")
    assert fragile.result("forgotten").get(timeout=60) == "before"
    assert fragile.ledger.names() == ["holding", "holding", "before"]
    assert "the database has forgotten the execution, of which nothing was on disk yet" in worker.log()


# -- the outbox -------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher(fragile: Arena) -> Any:
    """The task ``chain`` in a process that publishes it through the outbox."""
    app = Celery("outage", set_as_current=False)
    app.conf.update({**fragile.broker.conf, **fragile.database.conf, **SETTINGS, "durable_outbox": True})

    def chain(length: int) -> None:
        """Only its name matters here."""

    yield app.task(chain, base=DurableTask, name=f"{APP}.chain", shared=False)
    Runtime.of(app).end()
    app.close()


@on_each_server
def test_publishing_without_the_database_is_refused_and_sends_nothing(
    fragile: Arena, server: Fragile, publisher: Any
) -> None:
    publisher.apply_async((1,), task_id="accepted")
    server.stop()
    with pytest.raises(JournalUnavailable, match=r"did not commit within 1 s \(durable_ack_timeout\)"):
        publisher.apply_async((1,), task_id="refused")

    def publish_two() -> None:
        with outbox_batch():
            publisher.apply_async((1,), task_id="refused")
            publisher.apply_async((1,), task_id="refused too")

    with pytest.raises(JournalUnavailable):
        publish_two()
    server.start()
    # The same again is accepted; nothing of what was refused is left anywhere.
    publisher.apply_async((2,), task_id="again")
    assert {row.id for row in fragile.operations.find(limit=10)} == {"accepted", "again"}
    fragile.start()
    fragile.check_chains(["accepted"], 1)
    fragile.check_chains(["again"], 2)
    fragile.await_empty_broker()
    assert {entry["execution"] for entry in fragile.ledger.entries()} == {"accepted", "again"}
