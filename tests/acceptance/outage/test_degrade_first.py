"""``durable_on_unavailable = "degrade"`` never repeats what an earlier delivery has done."""

from __future__ import annotations

import pytest

from tests.support.wait import eventually

from .arena import Arena
from .servers import Fragile

pytestmark = pytest.mark.brokers("redis")


def test_a_redelivered_message_waits_for_the_journal_that_an_earlier_owner_wrote(
    fragile: Arena, server: Fragile
) -> None:
    worker = fragile.start(durable={"durable_on_unavailable": "degrade"})
    fragile.send("one", "ends", False)
    [holding] = eventually(lambda: fragile.ledger.entries("holding"), 60)
    server.crash()
    # Celery puts the message of a killed process back at once, and the next one takes it.
    worker.kill_child(pid=holding["pid"])
    fragile.await_said(worker, "one] may have run before, and is not run without its journal")
    fragile.open_gate("release")
    server.start()
    assert fragile.result("one").get(timeout=120) == "released"
    assert [entry["name"] for entry in fragile.ledger.entries(execution="one")] == [
        *("before", "holding", "holding", "after"),
    ]
