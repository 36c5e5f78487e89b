"""A member of a chord that waits for longer than its chord is remembered: somebody is told while it can be helped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import DurableContext
from celery_durable.execution import chords as expiry
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab

CHORD = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": "the body"}, "chord_size": 2}


def deliver(lab: Lab, body: Callable[[DurableContext], Any], *, chord: Any, id: str = "one") -> None:  # noqa: A002
    """A message whose body comes to a wait."""
    push = lab.job.push_request
    lab.job.push_request = lambda **request: push(**request, chord=chord)
    try:
        with pytest.raises(Left, match="suspended"):
            Delivery(lab)(body, id=id)
    finally:
        del lab.job.push_request


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_told", set())


@pytest.mark.parametrize(
    ("settings", "seconds", "chord", "told"),
    [
        ({}, 90_000, CHORD, "waits for 90000 s; the result backend remembers the chord for 86400 s"),
        ({}, None, CHORD, "waits for as long as it takes;"),
        ({"result_expires": 60}, 61, CHORD, "waits for 61 s; the result backend remembers the chord for 60 s"),
        ({}, 86_000, CHORD, ""),
        ({}, 90_000, None, ""),
        ({"result_expires": None}, 90_000, CHORD, ""),
        ({"durable_silence": ["CD946"]}, 90_000, CHORD, ""),
    ],
    ids=str,
)
def test_it_is_told_when_it_begins_to_wait(
    make_lab: Callable[..., Lab],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    seconds: int | None,
    chord: Any,
    told: str,
) -> None:
    lab = make_lab(result_backend="cache+memory://", **settings)

    def body(ctx: DurableContext) -> None:
        if seconds is None:
            ctx.wait(ctx.promise("decision"))
        else:
            ctx.sleep(seconds)

    with caplog.at_level(logging.WARNING, logger="celery_durable.execution.chords"):
        deliver(lab, body, chord=chord)
        deliver(lab, body, chord=chord, id="two")
    messages = [record.getMessage() for record in caplog.records if record.name == "celery_durable.execution.chords"]
    assert len(messages) == bool(told)
    if told:
        assert messages[0].startswith("[CD946] job[one], a member of a chord, waits ")
        assert told in messages[0]
