"""``Task.replace`` hands an id on: messages of the task that had it before are stale, whatever has happened since."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import LeaseLost
from celery_durable.runtime import Runtime
from celery_durable.store import Ownership
from celery_durable.store.records import Batch, Opened, OpenRequest, Refusal, Refused, State, StoredPayload
from tests.support.lab import Lab, everywhere

pytestmark = everywhere

NOTHING = StoredPayload(0, b"")


@pytest.fixture
def ownership(lab: Lab) -> Ownership:
    return Runtime.of(lab.app).ownership


def message(task: str, owner: str, replacements: int, retries: int = 0) -> OpenRequest:
    return OpenRequest("one", task, owner, retries, lambda: NOTHING, replacements=replacements)


def granted(ownership: Ownership, *what: Any) -> Opened:
    answer = ownership.open(message(*what))
    assert isinstance(answer, Opened)
    return answer


def batch(opened: Opened) -> Batch:
    return Batch(opened.fence, opened.generation, ())


@pytest.mark.parametrize("successor", ["next", "first"])
def test_the_replacement_begins_anew_though_its_sender_has_not_ended_yet(ownership: Ownership, successor: str) -> None:
    """Its message took its way through a chain, and was faster than the commit of the one who sent it."""
    first = granted(ownership, "first", "owner-1", 0)
    then = granted(ownership, successor, "owner-2", 1)
    assert (then.generation, then.base_generation, then.resumed, then.attempts) == (2, 2, False, 0)
    with pytest.raises(LeaseLost):
        ownership.finish(batch(first), "owner-1", State.COMPLETED, None, dispatched=True)


@pytest.mark.parametrize("successor", ["next", "first"])
@pytest.mark.parametrize("state", ["running", "suspended", "completed"])
def test_messages_of_the_task_that_was_replaced_are_dropped(ownership: Ownership, successor: str, state: str) -> None:
    first = granted(ownership, "first", "owner-1", 0)
    ownership.finish(batch(first), "owner-1", State.COMPLETED, None, dispatched=True)
    then = granted(ownership, successor, "owner-2", 1)
    if state == "suspended":
        ownership.suspend(batch(then), "owner-2", delay_ms=0, retries=1)
    elif state == "completed":
        ownership.finish(batch(then), "owner-2", State.COMPLETED, NOTHING)
    for retries in (0, 5):
        assert ownership.open(message("first", "owner-3", 0, retries)) == Refused(Refusal.STALE, State(state))


def test_a_replacement_does_not_get_past_an_operator_or_a_revocation(ownership: Ownership, lab: Lab) -> None:
    first = granted(ownership, "first", "owner-1", 0)
    ownership.park(batch(first), "owner-1", State.AMBIGUOUS, NOTHING)
    assert ownership.open(message("next", "owner-2", 1)) == Refused(Refusal.PARKED, State.AMBIGUOUS)
    lab.operations.cancel("one", "revoked")
    assert ownership.open(message("next", "owner-2", 1)) == Refused(Refusal.DONE, State.CANCELLED)


def test_a_task_that_follows_a_replaced_one_in_its_chain_is_retried_and_resumed_as_ever(ownership: Ownership) -> None:
    """Celery counts the replacement in its messages too."""
    first = granted(ownership, "follower", "owner-1", 1)
    ownership.suspend(batch(first), "owner-1", delay_ms=0, retries=1, sent=True)
    again = granted(ownership, "follower", "owner-2", 1, 1)
    assert (again.generation, again.resumed) == (1, True)
