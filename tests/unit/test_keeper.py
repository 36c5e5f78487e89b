"""What Celery was told is marked before a process ends, whichever thread has it in hand."""

from __future__ import annotations

import threading
import types
from collections.abc import Sequence
from typing import Any

import pytest

from celery_durable.runtime.leases import Keeper


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


@pytest.mark.parametrize(("lease_timeout", "longest"), [(2.0, 2.0 / 3), (60.0, 5.0)])
def test_what_a_run_left_in_an_outage_is_tried_well_within_a_lease(lease_timeout: float, longest: float) -> None:
    """Recovery gives an owner one lease to come back; then it finds a step in doubt that is in somebody's hands."""
    keeper = Keeper(Any, lease_timeout=lease_timeout, lifeline=NoLifeline())  # type: ignore[arg-type]
    keeper.end()  # no heartbeat: the test looks by itself
    away = types.SimpleNamespace(settle=lambda buffer: False)
    buffer = types.SimpleNamespace(fence=types.SimpleNamespace(pk=1))
    keeper.abandon(buffer, away, lambda: None)  # type: ignore[arg-type]
    [left] = keeper._abandoned
    pauses = []
    for _ in range(8):
        left.due = 0.0
        pauses.append(left._pause)
        keeper._retire()
        assert left.due > 0
    assert pauses[0] == 0.5
    assert max(pauses) == longest


class NoLifeline:
    def release(self) -> None:
        pass

    def hold(self, *_: Any) -> None:
        pass
