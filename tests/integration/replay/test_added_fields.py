"""A deploy that adds a field with a default is no divergence, whatever the execution has done; others are."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, Field

from celery_durable import DurableContext, OnAmbiguous
from celery_durable.codec.canonical import canonical
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab

HERE = sys.modules[__name__]


def now(cls: Any, name: str) -> Any:
    """A class as it is after a deploy: it has the name of the old one."""
    cls.__name__ = cls.__qualname__ = name
    cls.__module__ = __name__
    return cls


@dataclass
class Order:
    id: int
    total: int


class Row(NamedTuple):
    id: int
    total: int


class Model(BaseModel):
    id: int
    total: int


@dataclass
class Options:
    fast: bool = False
    tags: list[str] = field(default_factory=list)


class Choice(BaseModel):
    fast: bool = False


@dataclass
class OrderNow:
    id: int
    total: int
    currency: str = "EUR"
    lines: list[int] = field(default_factory=list)
    options: Options = field(default_factory=Options)


class RowNow(NamedTuple):
    id: int
    total: int
    currency: str = "EUR"
    lines: tuple[int, ...] = ()


class ModelNow(BaseModel):
    id: int
    total: int
    currency: str = "EUR"
    lines: list[int] = []
    more: dict[str, int] = Field(default_factory=dict)
    choice: Choice = Field(default_factory=Choice)


KINDS = [("Order", Order, OrderNow), ("Row", Row, RowNow), ("Model", Model, ModelNow)]


@pytest.mark.parametrize(("name", "before", "after"), KINDS, ids=[kind[0] for kind in KINDS])
def test_an_execution_that_has_charged_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str, before: Any, after: Any
) -> None:
    """The value is an argument of the guarded step: read from the journal, and made anew by the body."""
    charge = charging(OnAmbiguous.RERUN)
    dies = [True]

    def body(ctx: DurableContext) -> None:
        make = getattr(HERE, name)
        loaded = ctx.step("load", lambda: make(id=1, total=5))
        ctx.step(charge, lab.operation("charge", "receipt"), loaded.id)
        ctx.step("look", lambda *orders: lab.ledger.fire("look"), loaded, [make(id=2, total=6)])
        if dies:
            raise Crash

    lab.crash(body)
    monkeypatch.setattr(HERE, name, now(type(f"{name}Made", (after,), {}) if name == "Row" else after, name))
    dies.clear()
    lab.run(body)
    assert lab.execution().generation == 1
    assert [lab.ledger.count(one) for one in ("charge", "look")] == [1, 1]


def at(cls: Any, **values: Any) -> bytes:
    return canonical(now(cls, "Thing")(**values))


def test_what_is_the_same_and_what_is_not() -> None:
    @dataclass
    class Bare:
        id: int

    @dataclass
    class Dated:
        id: int
        day: dt.date = field(default_factory=dt.date.today)

    @dataclass
    class Required:
        id: int
        currency: str

    @dataclass
    class Currency:
        id: int
        currency: str = "EUR"

    @dataclass
    class Dollars:
        id: int
        currency: str = "USD"

    @dataclass
    class Flag:
        id: int
        currency: Any = True

    bare = at(Bare, id=1)
    assert at(Currency, id=1) == bare
    assert at(Currency, id=1, currency="USD") != bare
    assert at(Required, id=1, currency="EUR") != bare
    # Equal is not enough: the types must be.
    assert at(Flag, id=1) == bare
    assert at(Flag, id=1, currency=1) != bare
    # A function that gives another value tomorrow says nothing today.
    assert at(Dated, id=1) != bare
    # A changed default is a change, for values that have the old one too.
    assert at(Dollars, id=1, currency="EUR") != at(Currency, id=1, currency="EUR")
    assert at(Dollars, id=1, currency="EUR") == at(Required, id=1, currency="EUR")


def test_fields_are_never_taken_for_others() -> None:
    """Different values stay different, whatever is left out of them."""

    @dataclass
    class Pair:
        a: int = 0
        b: int = 0
        c: dict[str, int] = field(default_factory=dict)
        d: Options = field(default_factory=Options)

    pairs = [
        Pair(a, b, c, d)
        for a in (0, 1)
        for b in (0, 1)
        for c in ({}, {"a": 1}, collections.OrderedDict())
        for d in (Options(), Options(tags=["x"]))
    ]
    assert len({canonical(one) for one in pairs}) == len(pairs)
    assert len({canonical(dataclasses.asdict(one)) for one in pairs}) == len(pairs)
