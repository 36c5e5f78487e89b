"""Fingerprints and keys: the same everywhere and for ever, and different where the calls differ."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import math
import os
import pathlib
import subprocess
import sys
import uuid
import zoneinfo
from typing import Any, NamedTuple

import pytest

from celery_durable.errors import FingerprintError
from celery_durable.identity import canonical, fingerprint, fingerprint_of, global_key, idempotency_key, short

pydantic = pytest.importorskip("pydantic")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Order:
    id: int
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass
class Other:
    id: int
    note: str = ""


class Point(NamedTuple):
    x: int
    y: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: Any
    _hidden: int = 0


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

#: No two of these are the same thing.
DISTINCT: list[Any] = [
    None,
    False,
    True,
    0,
    1,
    -1,
    12,
    2**63,
    -(2**63) - 1,
    10**6000,
    0.0,
    1.0,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "0",
    "1",
    "None",
    "\ud83d\ude00",
    "😀",
    b"",
    b"1",
    bytearray(b"1"),
    [],
    [1],
    [[1], 2],
    [[1, 2]],
    [1, 2],
    [12],
    (),
    (1,),
    (1, 2),
    ("ab", "c"),
    ("a", "bc"),
    ("abc",),
    ("a", "b", "c"),
    set(),
    {1},
    frozenset({1}),
    {},
    {"a": 1},
    {"a": "1"},
    {1: "a"},
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    {"a": {"b": 1}},
    [("a", 1)],
    collections.OrderedDict(a=1, b=2),
    collections.OrderedDict(b=2, a=1),
    1 + 0j,
    range(1),
    range(0, 1, 2),
    decimal.Decimal(1),
    decimal.Decimal("1.0"),
    uuid.UUID(int=1),
    pathlib.PurePosixPath("a"),
    pathlib.PureWindowsPath("a"),
    dt.date(2024, 1, 1),
    dt.time(0),
    dt.timedelta(1),
    dt.timedelta(seconds=1),
    dt.timedelta(microseconds=1),
    dt.datetime(2024, 1, 1),  # noqa: DTZ001
    dt.datetime(2024, 1, 1, fold=1),  # noqa: DTZ001
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc),
    dt.datetime(2024, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    dt.datetime(2024, 1, 1, 1, tzinfo=BERLIN),
    dt.timezone.utc,
    BERLIN,
    Color.RED,
    Color.BLUE,
    Bits.A,
    Bits.A | Bits.B,
    Bits(0),
    Order(1),
    Order(1, "x"),
    Order(2),
    Other(1),
    Point(1, 2),
    Point(2, 1),
    Model(a=1),
    Model(a=(1,)),
    Model(a=1, b=2),  # type: ignore[call-arg]
    [Order(1)],
]


def test_different_values_have_different_forms() -> None:
    forms = [canonical(value) for value in DISTINCT]
    for (i, a), (j, b) in itertools.combinations(enumerate(forms), 2):
        assert a != b, (DISTINCT[i], DISTINCT[j])


def test_no_form_is_the_start_of_another() -> None:
    """So that forms can be put in a row without delimiters."""
    forms = [canonical(value) for value in DISTINCT]
    for a, b in itertools.permutations(forms, 2):
        assert not b.startswith(a), (a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: {"x": 1, "y": 2}}, {1: {"y": 2, "x": 1}}),
        ({"b", "a", "c"}, {"c", "a", "b"}),
        (0.0, -0.0),
        (complex(0.0, 0.0), complex(-0.0, 0.0)),
        (math.nan, -math.nan),
        (dt.timezone.utc, dt.timezone(dt.timedelta(0), "Zulu")),
        (pathlib.Path("a"), pathlib.PurePath("a")),
    ],
)
def test_equal_values_have_equal_forms(a: Any, b: Any) -> None:
    assert canonical([a]) == canonical([b])


def test_private_attributes_of_a_model_do_not_count() -> None:
    other = Model(a=1)
    other._hidden = 5
    assert canonical(other) == canonical(Model(a=1))


def test_vectors() -> None:
    """Pinned. These bytes are in deployed journals: when one changes, every running execution diverges, and guarded
    steps get new idempotency keys and may fire twice. Never change an expectation here; add a new form instead.
    """
    assert canonical(("a", 1, 1.5, None, True, [b"x"], {"k": {2}})) == (
        b"t7:s1:ai1,f?\xf8\x00\x00\x00\x00\x00\x00NTl1:b1:xd1:s1:kS1:i2,"
    )
    assert canonical(-(2**63) - 1) == b"I-8000000000000001,"
    assert canonical(dt.datetime(2024, 1, 2, 3, tzinfo=dt.timezone.utc)) == (
        b"x8:datetime3:19:2024-01-02T03:00:000,x8:timezone1:x9:timedelta1:0,0,0,"
    )
    assert canonical(decimal.Decimal("9.90")) == b"x7:decimal1:4:9.90"
    assert canonical(Color.RED) == b"x4:enum2:%d:%b:Color3:RED" % (len(__name__) + 6, __name__.encode())
    assert canonical(Point(1, 2)) == b"x10:namedtuple2:%d:%b:Pointd2:s1:xi1,s1:yi2," % (
        len(__name__) + 6,
        __name__.encode(),
    )
    fp = fingerprint("charge", "guarded", ("order-1", 1999), {"currency": "EUR", "live": True})
    got = [
        fp,
        fingerprint("load", "idempotent", (), {}),
        fingerprint_of("charge", "guarded", "order-1"),
        idempotency_key("shop", "8b3c", "charge", fp, 0),
        idempotency_key("shop", "8b3c", "charge", fp, 3, lane="0.2"),
        global_key("shop", "invoice-7"),
    ]
    assert [digest.hex() for digest in got] == [
        "9306e8459b97a0dd2b0fe89d0bdc62541180e7ca36d81e24ccd91e2b9899f27f",
        "911945597a3a6fe92dfa4a8ac3c5ce43f60d1ccb818cedb57cf7062d35b0536f",
        "038dbf6c612850a1e5a75219a17d20181a7f67ecca96497c3b9127f72109ac54",
        "360dc0f327664fcdea1387c4885afa95368fe95abb1a2eaf110d3db581268008",
        "8c3d3a655bfeb994f3ef4c231cbc588bb9008014bfde994edf5782ecf0d1d16a",
        "4aceb1578cd8610de591150136fe28575c575810792c0e6270dfbf7f33a76f9e",
    ]


def test_the_same_in_every_process() -> None:
    code = (
        "from celery_durable.identity import fingerprint;"
        "print(fingerprint('s', 'e', ({'b', 'a', 'c', 'd'}, {'x': frozenset('wxyz')}), {'k': 1, 'j': 2}).hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(runs) == 1


def test_fingerprint_sees_every_part() -> None:
    prints = [
        fingerprint("a", "idempotent", (), {}),
        fingerprint("b", "idempotent", (), {}),
        fingerprint("a", "guarded", (), {}),
        fingerprint("ag", "uarded", (), {}),
        fingerprint("a", "idempotent", (1,), {}),
        fingerprint("a", "idempotent", (1, 2), {}),
        fingerprint("a", "idempotent", ((1, 2),), {}),
        fingerprint("a", "idempotent", (1,), {"x": 2}),
        fingerprint("a", "idempotent", (1,), {"y": 2}),
        fingerprint("a", "idempotent", (), {"x": 1, "y": 2}),
        fingerprint("a", "idempotent", ("x", 1, "y", 2), {}),
        fingerprint("a", "idempotent", ({"x": 1, "y": 2},), {}),
        fingerprint_of("a", "idempotent", ()),
        fingerprint_of("a", "idempotent", (1,)),
        fingerprint_of("a", "idempotent", 1),
    ]
    assert len(set(prints)) == len(prints)
    assert {len(p) for p in prints} == {32}


def test_order_of_keywords_does_not_matter() -> None:
    assert fingerprint("a", "e", (), {"x": 1, "y": 2}) == fingerprint("a", "e", (), {"y": 2, "x": 1})


def test_custom_fingerprint_stands_for_the_arguments() -> None:
    assert fingerprint_of("a", "e", {"x": 1, "y": 2}) == fingerprint_of("a", "e", {"y": 2, "x": 1})


def test_key_sees_every_part() -> None:
    fp, other = bytes(32), bytes([1]) * 32
    keys = [
        idempotency_key("n", "x", "s", fp, 0),
        idempotency_key("n", "y", "s", fp, 0),
        idempotency_key("n", "x", "t", fp, 0),
        idempotency_key("n", "xs", "", fp, 0),
        idempotency_key("n", "", "xs", fp, 0),
        idempotency_key("n", "x", "s", other, 0),
        idempotency_key("n", "x", "s", fp, 1),
        idempotency_key("n", "x", "s", fp, 0, "0"),
        idempotency_key("n", "x", "s", fp, 0, "1"),
        idempotency_key("n", "x", "s0", fp, 0),
        idempotency_key("n", "x", "s", fp + b"0", 0),
        idempotency_key("m", "x", "s", fp, 0),
        idempotency_key("nx", "", "s", fp, 0),
        global_key("x", "s"),
        global_key("xs", ""),
        global_key("x", "t"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(k) for k in keys} == {32}


def test_short() -> None:
    assert short(bytes(range(32))) == "000102030405"


# What has no fingerprint -----------------------------------------------------------------------------------------


class StrChild(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    pass


class Undecorated(Order):
    pass


def cyclic() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def deep() -> Any:
    value: Any = 1
    for _ in range(50_000):
        value = [value]
    return value


@dataclasses.dataclass
class OnList(list):  # type: ignore[type-arg]
    a: int = 0


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (object(), "$", "'object'"),
        (lambda: 1, "$", "'function'"),
        ({"a": [0, object()]}, "$.a[1]", "'object'"),
        ({object(): 1}, "$.<key 0>", "'object'"),
        ({object()}, "$[<element>]", "'object'"),
        (StrChild("x"), "$", "StrChild"),
        (collections.defaultdict(list), "$", "defaultdict"),
        (Order(1, object()), "$.note", "'object'"),  # type: ignore[arg-type]
        (Undecorated(1), "$", "Undecorated"),
        (OnList(), "$", "OnList"),
        (Model(a=object()), "$.a", "'object'"),
        (Point(1, object()), "$.y", "'object'"),  # type: ignore[arg-type]
        (dt.time(tzinfo=Zone()), "$.tzinfo", "Zone"),
        (cyclic(), "$.self[0]", "nested deeper than 100"),
        (deep(), "$[0][0]", "nested deeper than 100"),
    ],
)
def test_refused_with_step_argument_path_and_cure(value: Any, path: str, kind: str) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("argument 2 of step 'charge'", (1, value), {}),
        ("argument 'order' of step 'charge'", (1,), {"a": 1, "order": value}),
    ]
    for label, args, kwargs in calls:
        with pytest.raises(FingerprintError) as caught:
            fingerprint("charge", "guarded", args, kwargs)
        text = str(caught.value)
        assert text.startswith(f"[CD201] {label} has no canonical form")
        assert path in text
        assert kind in text
        assert "@step(fingerprint=lambda order: order.id)" in text
        assert "secrets" in text
        assert caught.value.step == "charge"  # type: ignore[attr-defined]
        assert caught.value.argument in label  # type: ignore[attr-defined]
    with pytest.raises(FingerprintError, match="fingerprint= of step 'charge' returned has no canonical form"):
        fingerprint_of("charge", "guarded", value)
