"""Public value classes are stored under names that do not depend on where in the package they are defined."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import Any

import pytest

import celery_durable
from celery_durable import (
    Effect,
    ExecutionStatus,
    Happened,
    Intent,
    OnAmbiguous,
    Selected,
    State,
    StepOutcome,
    StepRecord,
)
from celery_durable.codec import Codec

_NOW = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
_STATUS = ExecutionStatus("a", "shop.pay", State.COMPLETED, 0, 0, 1, 2, _NOW, _NOW, None, (), None, None)

#: Value → how it was stored when its class was named by its module.
OF_OLD: list[tuple[Any, Any]] = [
    (State.COMPLETED, ["enum", "celery_durable.store.records:State", "COMPLETED"]),
    (StepOutcome.DONE, ["enum", "celery_durable.timeline:StepOutcome", "DONE"]),
    (Effect.IDEMPOTENT, ["enum", "celery_durable.effects:Effect", "IDEMPOTENT"]),
    (Intent.MONEY_MOVING, ["enum", "celery_durable.effects:Intent", "MONEY_MOVING"]),
    (OnAmbiguous.FAIL, ["enum", "celery_durable.effects:OnAmbiguous", "FAIL"]),
    (Happened("x"), ["dataclass", "celery_durable.effects:Happened", {"value": "x"}]),
    (Selected("first", 1), ["namedtuple", "celery_durable.promise:Selected", {"key": "first", "value": 1}]),
]
VALUES = [value for value, _ in OF_OLD]


@pytest.mark.parametrize(("value", "stored"), OF_OLD, ids=lambda one: type(one).__name__)
def test_a_journal_with_the_old_names_is_read(value: Any, stored: Any) -> None:
    assert Codec().decode(17, json.dumps({"~": stored}).encode(), "a value") == value


@pytest.mark.parametrize("value", [*VALUES, _STATUS, StepRecord("0", "pay", b"k", 1, False, False, 1)], ids=repr)
def test_they_are_stored_under_their_public_names(value: Any) -> None:
    payload = Codec().encode(value, "a value")
    assert f'"celery_durable:{type(value).__name__}"'.encode() in payload.data
    assert b"celery_durable." not in payload.data
    assert Codec().decode(*payload, "a value") == value
    assert pickle.loads(pickle.dumps(value)) == value


def test_every_public_value_class_is_one_of_them() -> None:
    """Whoever adds one has to think of its name."""
    handles = {
        "Branch", "DjangoTransactional", "DurableContext", "DurableTask", "ExecutionHandle", "Parallel", "Promise",
        "Step", "StepDescriptor", "StepHandle", "Timer", "Transactional",
    }  # fmt: skip
    classes = {name for name in celery_durable.__all__ if isinstance(getattr(celery_durable, name), type)}
    values = {name for name in classes - handles if not issubclass(getattr(celery_durable, name), BaseException)}
    assert {name for name in values if getattr(celery_durable, name).__module__ != "celery_durable"} == set()
    assert len(values) == 12
