"""What Celery was told is marked before a process ends, whichever thread has it in hand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from celery_durable.lease import Keeper


class SlowOwnership:
    """Marks when the test lets it: with a database, that moment could not be met."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.marked: list[int] = []

    def mark_dispatched(self, pks: Sequence[int]) -> None:
        if not pks:
            return
        self.begun.set()
        assert self.may_end.wait(30)
        self.marked += pks


def test_a_process_that_ends_waits_for_the_mark_that_its_heartbeat_is_at() -> None:
    slow = SlowOwnership()
    keeper = Keeper(slow, lease_timeout=30, lifeline=NoLifeline())  # type: ignore[arg-type]
    keeper.dispatched(7)  # starts the heartbeat, which takes it
    assert slow.begun.wait(30)
    closing = threading.Thread(target=keeper.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    assert slow.marked == []
    slow.may_end.set()
    closing.join(30)
    assert not closing.is_alive()
    assert slow.marked == [7]


class NoLifeline:
    def release(self) -> None:
        pass

    def hold(self, *_: Any) -> None:
        pass
