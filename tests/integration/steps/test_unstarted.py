"""An intent could not be acknowledged: the guarded operation has not started, and nothing is in doubt."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable import DurableContext, JournalUnavailable, OnAmbiguous
from celery_durable.store.records import Batch, EntryKind
from tests.integration.charging import charging
from tests.support.lab import Lab, everywhere

NAMED = charging(OnAmbiguous.FAIL, key="the charge")
PLAIN = charging(OnAmbiguous.FAIL)


class Outage:
    """Loses the intent's commit, or only its acknowledgement.

    :param commits: it is the acknowledgement.
    """

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, commits: bool, error: BaseException) -> None:
        self._commits = commits
        self._error = error
        self._left = 1
        for method in ("append", "append_global"):
            real = getattr(lab.runtime.journal, method)
            monkeypatch.setattr(lab.runtime.journal, method, self._failing(real))

    def _failing(self, real: Any) -> Any:
        def append(what: Any, *more: Any) -> Any:
            alone = isinstance(what, Batch)
            entries = [more[0]] if alone else [entry for batch in what for entry in batch.entries]
            if not self._left or all(entry.kind is not EntryKind.INTENT for entry in entries):
                return real(what, *more)
            self._left -= 1
            if self._commits:
                real(what, *more)
            raise self._error

        return append


@everywhere
@pytest.mark.parametrize("descriptor", [PLAIN, NAMED], ids=["plain", "named"])
@pytest.mark.parametrize("commits", [True, False], ids=["it was committed", "it was not"])
def test_an_operation_whose_intent_was_not_acknowledged_runs_at_the_next_attempt(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, descriptor: Any, commits: bool
) -> None:
    op = lab.operation("charge", "charged")
    Outage(lab, monkeypatch, commits, JournalUnavailable("the database is away."))

    def body(ctx: DurableContext) -> Any:
        return ctx.step("first", lambda: 1), ctx.step(descriptor, op)

    with pytest.raises(JournalUnavailable):
        lab.run(body)
    assert lab.ledger.count("charge") == 0
    # The database is back: what the attempt left behind is written, and its lease is given back.
    lab.runtime.keeper._retire()
    assert lab.run(body) == (1, "charged")
    assert lab.ledger.count("charge") == 1
    assert lab.audits() == []
    # And it is replayed like any other.
    assert [entry for entry in lab.entries() if "RESULT" in entry] == ["0 RESULT first", "1 RESULT charge"]


@pytest.mark.parametrize("commits", [True, False], ids=["it was committed", "it was not"])
def test_so_does_one_whose_process_was_told_to_end_meanwhile(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    op = lab.operation("charge", "charged")
    Outage(lab, monkeypatch, commits, SystemExit())
    with pytest.raises(SystemExit):
        lab.run(lambda ctx: ctx.step(PLAIN, op))
    assert lab.run(lambda ctx: ctx.step(PLAIN, op)) == "charged"
    assert lab.ledger.count("charge") == 1
    assert lab.audits() == []
