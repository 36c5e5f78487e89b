"""Which reason an execution is given for not going on, where several come together."""

from __future__ import annotations

import itertools

import pytest

from celery_durable.errors import DurableError, EntryRefused, JournalUnavailable, LeaseLost
from celery_durable.journal.standing import Standing
from celery_durable.replay.leaving import Park

OUTAGE, REFUSAL, LOST = JournalUnavailable("outage"), EntryRefused("refusal"), LeaseLost("lost")


@pytest.mark.parametrize("reasons", list(itertools.permutations([OUTAGE, REFUSAL, LOST], 2)))
def test_what_is_final_outweighs_an_outage_and_a_lost_lease_everything(reasons: tuple[DurableError, ...]) -> None:
    standing = Standing()
    for reason in reasons:
        standing.refuse(reason)
    assert standing.refused is max(reasons, key=[OUTAGE, REFUSAL, LOST].index)
    assert standing.is_final


def test_the_first_of_two_outages_stays_and_is_not_final() -> None:
    standing = Standing()
    standing.refuse(OUTAGE)
    standing.refuse(JournalUnavailable("another"))
    assert (standing.refused, standing.is_final) == (OUTAGE, False)


def test_a_body_gets_the_first_reason_again_and_again_until_its_end_is_written() -> None:
    standing = Standing()
    standing.check()
    first = Park("in doubt")
    assert standing.bar(first) is first
    assert standing.bar(OUTAGE) is first
    for _ in range(2):
        with pytest.raises(Park) as caught:
            standing.check()
        assert caught.value is first
    standing.refuse(LOST)
    standing.lift()
    standing.check()
    assert standing.refused is LOST  # whoever ends the execution cannot write either


def test_an_execution_is_parked_without_the_entry_that_was_refused_and_its_body_stays_barred() -> None:
    standing = Standing()
    standing.refuse(REFUSAL)
    standing.bar(REFUSAL)
    standing.pardon()
    assert (standing.refused, standing.barred) == (None, REFUSAL)


def test_without_a_journal_an_outage_is_forgotten() -> None:
    standing = Standing()
    standing.refuse(OUTAGE)
    standing.degrade()
    assert (standing.refused, standing.degraded) == (None, True)
