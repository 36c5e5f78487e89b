"""Journal entries as a timeline: order, outcomes, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from celery_durable.codec import Codec
from celery_durable.journal.timeline import RecordedStep, place_key, read
from celery_durable.store.records import EffectCode, EntryKind, Journaled, State

K = EntryKind
CODEC = Codec()


def row(
    kind: int, position: int = 0, entry: int = 0, *, scope: str = "", name: str = "s", value: Any = ..., **more: Any
) -> Journaled:
    codec, payload = (None, None) if value is ... else CODEC.encode(value)
    effect = None if kind in (K.SCOPE, K.SCOPE_END, K.PATCH) else int(EffectCode.EXACTLY_ONCE_GUARDED)
    fields = {
        "generation": 1, "scope": scope, "position": position, "entry": entry, "kind": int(kind), "effect": effect,
        "name": name, "fingerprint": b"f", "key": b"k" if effect else None, "epoch": 1, "attempt": 1, "at": 0,
        "duration_us": None, "codec": codec, "payload": payload,
    }  # fmt: skip
    return Journaled(**{**fields, **more})


def step(*kinds: EntryKind, state: State | None = State.AMBIGUOUS, audit: Any = None) -> RecordedStep:
    said = audit or {"reason": "an intent without a result", "decision": "fail"}
    rows = [row(kind, entry=n, value=said if kind is K.AUDIT else 1) for n, kind in enumerate(kinds)]
    [found] = read(rows, CODEC, state).steps
    return found


@pytest.mark.parametrize(
    ("kinds", "state", "outcome"),
    [
        ((K.INTENT, K.RESULT), State.RUNNING, "done"),
        ((K.INTENT,), State.RUNNING, "trying"),
        ((K.INTENT,), State.PENDING, "in doubt"),
        ((K.INTENT,), None, "in doubt"),
        ((K.INTENT, K.AUDIT), State.AMBIGUOUS, "in doubt"),
        ((K.INTENT, K.AUDIT, K.SKIPPED), State.COMPLETED, "skipped"),
        ((K.INTENT, K.LOST), State.COMPLETED, "lost"),
        ((K.INTENT, K.ATTEMPT), State.RUNNING, "retrying"),
        ((K.INTENT, K.ATTEMPT), State.SUSPENDED, "retrying"),
        ((K.INTENT, K.ATTEMPT), State.FAILED, "failed"),
        ((K.INTENT, K.ATTEMPT), None, "failed"),
        ((K.INTENT, K.ATTEMPT, K.ERROR), State.COMPLETED, "failed"),
        ((K.INTENT, K.AUDIT, K.AUDIT, K.RUN_AGAIN), State.PENDING, "to run"),
        ((K.INTENT, K.AUDIT, K.AUDIT, K.RUN_AGAIN, K.INTENT, K.RESULT), State.COMPLETED, "done"),
    ],
)
def test_what_became_of_a_step(kinds: tuple[EntryKind, ...], state: State | None, outcome: str):
    assert step(*kinds, state=state).outcome == outcome


@pytest.mark.parametrize(
    ("kinds", "state", "outcome"),
    [
        ((K.INTENT,), State.RUNNING, "trying"),
        ((K.INTENT,), State.PENDING, "begun"),
        ((K.INTENT, K.ATTEMPT, K.INTENT), State.QUARANTINED, "begun"),
        ((K.INTENT,), State.CANCELLED, "begun"),
        ((K.INTENT,), None, "begun"),
        ((K.INTENT, K.ATTEMPT), State.SUSPENDED, "retrying"),
        ((K.INTENT, K.RESULT), State.RUNNING, "done"),
    ],
)
def test_what_became_of_a_step_that_may_be_repeated(
    kinds: tuple[EntryKind, ...], state: State | None, outcome: str
) -> None:
    rows = [row(kind, entry=n, value=1, effect=int(EffectCode.AT_LEAST_ONCE), key=None) for n, kind in enumerate(kinds)]
    [found] = read(rows, CODEC, state).steps
    assert (found.outcome, found.doubt) == (outcome, None)


@pytest.mark.parametrize(
    ("audit", "outcome", "doubt", "text"),
    [
        (
            {"reason": "an intent under the same key= in x", "decision": "fail"},
            "in doubt",
            "an intent under the same key= in x",
            "an intent under the same key= in x; policy: fail",
        ),
        (
            {"reason": "r", "decision": "reconcile: unknown, it raised ValueError: card 4111: no"},
            "in doubt",
            "r",
            "r; policy: reconcile: unknown, it raised ValueError",
        ),
        (
            {"reason": "step raised Timeout: card 4111", "decision": "parked", "error": "Timeout"},
            "in doubt",
            "its operation raised Timeout, which may hide a success",
            "left to an operator; raised: Timeout",
        ),
        (
            {"reason": "long", "decision": "parked", "error": "AmbiguousEffect"},
            "in doubt",
            "an intent without a result",
            "left to an operator; raised: AmbiguousEffect",
        ),
        (
            {"reason": "conflict", "generation": 3, "key": "ab", "then": "(4111)", "now": "(4112)"},
            "conflict",
            "generation 3 ran it already, under other arguments",
            "conflict: generation 3 ran it under other arguments; left to an operator",
        ),
        ("damaged", "in doubt", "damaged", "damaged; policy: "),
    ],
)
def test_audits_are_told_without_arguments_and_messages(audit: Any, outcome: str, doubt: str, text: str):
    found = step(K.INTENT, K.AUDIT, audit=audit)
    assert (found.outcome, found.doubt, found.events[1].text) == (outcome, doubt, text)
    assert found.rival == ((3, "ab") if outcome == "conflict" else None)


def test_steps_stand_in_the_order_of_the_body():
    places = ["0", "2", "2.0/0", "2.0/1", "2.0/1.0/5", "2.0/2", "2.10/0", "3", "10", "10.0/0"]
    assert sorted(sorted(places), key=place_key) == places

    rows = [
        row(K.PATCH, 1, scope="#patch", name="greeting"),
        row(K.ABORTED, scope="#aborted", name="aborted", value="because"),
        row(K.SCOPE, 2, name="parallel"),
        row(K.SCOPE_END, 2, 1, name="parallel", value=[1, 1]),
        row(K.SCOPE, 10, name="parallel"),
        row(K.RESULT, 0),
        *(row(K.RESULT, 0, scope=f"2.{branch}") for branch in (10, 2)),
        row(K.RESULT, 0, scope="10.0"),
    ]
    timeline = read(rows, CODEC, State.RUNNING)
    assert [s.position for s in timeline.steps] == ["0", "2.2/0", "2.10/0", "10.0/0"]
    assert [(s.position, s.branches, s.ended) for s in timeline.scopes] == [("2", 11, True), ("10", 1, False)]
    assert timeline.patches == ["greeting"]


def test_entries_that_contradict_each_other_are_told():
    timeline = read([row(K.INTENT, name="a"), row(K.RESULT, entry=1, name="b")], CODEC, State.RUNNING)
    [found] = timeline.steps
    assert found.outcome == "unreadable"
    assert found.doubt is not None
    assert "name different steps ('a' and 'b')" in found.doubt
