"""Values between a person's JSON and what a step returns."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union

import pydantic
import pytest

from celery_durable import step
from celery_durable.cli.values import DoesNotFit, plain, typed
from celery_durable.codec import Codec
from celery_durable.steps.decorator import return_types


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: float = 0.0


@dataclass(frozen=True)
class Line:
    amount: Decimal
    on: dt.date


@dataclass
class Order:
    id: uuid.UUID
    lines: list[Line]
    note: str | None = None
    tags: frozenset[str] = frozenset()
    size: int = field(init=False, default=0)


class Model(pydantic.BaseModel):
    name: str
    at: dt.datetime


class Options(TypedDict, total=False):
    limit: Decimal


UserId = NewType("UserId", int)
T = TypeVar("T")
MORNING = dt.datetime(2026, 11, 23, 10, tzinfo=dt.timezone.utc)
ID = uuid.UUID("12345678123456781234567812345678")

#: Annotation, JSON, value.
FITTING: list[tuple[Any, Any, Any]] = [
    (Any, {"a": [1]}, {"a": [1]}),
    (object, 1, 1),
    (T, 1, 1),
    (None, None, None),
    (bool, True, True),
    (int, 3, 3),
    (float, 3, 3.0),
    (str, "x", "x"),
    (bytes, "AP8=", b"\x00\xff"),
    (dict, {"a": 1}, {"a": 1}),
    (list, [1], [1]),
    (tuple, [1], (1,)),
    (set, [1], {1}),
    (Decimal, "9.90", Decimal("9.90")),
    (Decimal, 9.9, Decimal("9.9")),
    (uuid.UUID, str(ID), ID),
    (dt.date, "2026-11-23", dt.date(2026, 11, 23)),
    (dt.time, "10:30", dt.time(10, 30)),
    (dt.datetime, "2026-11-23T10:00:00Z", MORNING),
    (dt.timedelta, 90, dt.timedelta(seconds=90)),
    (Colour, "red", Colour.RED),
    (Level, 3, Level.HIGH),
    (Optional[Decimal], None, None),  # noqa: UP045
    (Optional[Decimal], "1", Decimal(1)),  # noqa: UP045
    (int | str, "x", "x"),
    (Union[Line, Point], {"x": 1}, Point(1)),  # noqa: UP007
    (Literal["a", "b"], "b", "b"),
    (Annotated[Decimal, "euro"], "1", Decimal(1)),
    (UserId, 7, 7),
    (list[Decimal], ["1"], [Decimal(1)]),
    (Sequence[Decimal], ["1"], [Decimal(1)]),
    (tuple[int, Decimal], [1, "2"], (1, Decimal(2))),
    (tuple[Decimal, ...], ["1", "2"], (Decimal(1), Decimal(2))),
    (set[int], [1, 2], {1, 2}),
    (Mapping[str, Colour], {"a": "red"}, {"a": Colour.RED}),
    (Options, {"limit": "5"}, {"limit": Decimal(5)}),
    (Point, {"x": 1, "y": 2}, Point(1, 2.0)),
    (Model, {"name": "n", "at": "2026-11-23T10:00:00Z"}, Model(name="n", at=MORNING)),
    (
        Order,
        {"id": str(ID), "lines": [{"amount": "1.5", "on": "2026-01-02"}], "tags": ["a"]},
        Order(ID, [Line(Decimal("1.5"), dt.date(2026, 1, 2))], tags=frozenset("a")),
    ),
]


@pytest.mark.parametrize(("annotation", "json", "value"), FITTING, ids=[str(f[0]) for f in FITTING])
def test_json_becomes_what_the_step_returns(annotation: Any, json: Any, value: Any):
    made = typed(json, annotation)
    assert made == value
    assert type(made) is type(value)
    codec = Codec()
    assert codec.decode(*codec.encode(made)) == value  # and the journal takes it


@pytest.mark.parametrize(
    ("annotation", "json", "complaint"),
    [
        (int, True, "value: expected a whole number, not True"),
        (int, 1.5, "value: expected a whole number, not 1.5"),
        (None, 0, "value: expected null, not 0"),
        (Literal["a"], "b", "value: expected one of ['a'], not 'b'"),
        (list[int], [1, "2"], "value[1]: expected a whole number, not '2'"),
        (list[int], {"a": 1}, "value: expected an array, not {'a': 1}"),
        (tuple[int, int], [1], "value: expected an array of 2, not [1]"),
        (dict[str, int], {"a": None}, "value['a']: expected a whole number, not None"),
        (Decimal, "much", "value: 'much' is no decimal.Decimal: [<class 'decimal.ConversionSyntax'>]"),
        (Colour, "blue", "value: 'blue' is no tests.unit.test_cli_values.Colour: 'blue' is not a valid Colour"),
        (int | str, 1.5, 'value: expected a whole number, not 1.5; value: expected text ("..."), not 1.5'),
        (Point, [1, 2], "value: expected an object with the fields of tests.unit.test_cli_values.Point, not [1, 2]"),
        (
            Order,
            {"id": str(ID), "lines": [{"amount": "1", "on": "soon"}]},
            "value.lines[0].on: 'soon' is no datetime.date: Invalid isoformat string: 'soon'",
        ),
        (
            Order,
            {"size": 1},
            "value: tests.unit.test_cli_values.Order has no field 'size'; it has id, lines, note, tags",
        ),
        (Codec, 1, "value: there is no way to write a celery_durable.codec.codec.Codec as JSON"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(annotation: Any, json: Any, complaint: str):
    with pytest.raises(DoesNotFit) as caught:
        typed(json, annotation)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (Order(ID, [Line(Decimal("1.5"), dt.date(2026, 1, 2))]),
         {"id": str(ID), "lines": [{"amount": "1.5", "on": "2026-01-02"}], "note": None, "tags": [], "size": 0}),
        (Point(1), {"x": 1, "y": 0.0}),
        (Model(name="n", at=MORNING), {"name": "n", "at": "2026-11-23T10:00:00Z"}),
        ({Colour.RED: Level.HIGH, 1: (b"\x00\xff", {2})}, {"red": 3, "1": ["AP8=", [2]]}),
        (dt.timedelta(minutes=1), 60.0),
        (ValueError("no"), {"type": "ValueError", "message": "no"}),
        (1j, "1j"),
    ],
)  # fmt: skip
def test_values_are_shown_as_json(value: Any, json: Any):
    assert plain(value) == json


def test_a_step_knows_what_it_returns():
    @step(name="test_cli_values: known")
    def known() -> list[Line]:
        raise NotImplementedError

    @step(name="test_cli_values: silent")
    def silent():  # type: ignore[no-untyped-def]
        raise NotImplementedError

    assert return_types("test_cli_values: known") == [list[Line]]
    assert return_types("test_cli_values: silent") == []
    assert return_types("test_cli_values: nobody") == []
    del known, silent
    assert return_types("test_cli_values: known") == []
