"""A value comes back from the journal as it went in, with its exact type, or it does not go in."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import http
import math
import pathlib
import subprocess
import sys
import threading
import traceback
import typing
import uuid
import zoneinfo
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from celery_durable.codec import Codec
from celery_durable.codec.refusal import MAX_DEPTH
from celery_durable.errors import FingerprintError, PayloadError, PayloadTooLarge
from celery_durable.identity import fingerprint

pydantic = pytest.importorskip("pydantic")

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    GREEN = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    name_ = 4


class Word(str, enum.Enum):
    YES = "yes"


class Named(enum.Enum):
    """Members may shadow the attributes that everybody uses."""

    name = 1  # type: ignore[misc]


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    total: int = dataclasses.field(init=False)
    ran: typing.ClassVar[int] = 0

    def __post_init__(self) -> None:
        type(self).ran += 1
        object.__setattr__(self, "total", self.a * 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Unset:
    a: int
    later: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Odd:
    a: int
    seed: dataclasses.InitVar[int]

    def __post_init__(self, seed: int) -> None:
        self.derived = [seed]

    @functools.cached_property
    def lock(self) -> Any:
        return threading.Lock()


class SlotBase:
    __slots__ = ("__hidden", "plain")


@dataclasses.dataclass
class OnSlots(SlotBase):
    a: int


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


class Point(NamedTuple):
    x: int
    y: Any = 0


Pair = collections.namedtuple("Pair", ["left", "right"])


class Item(pydantic.BaseModel):
    sku: str
    price: decimal.Decimal
    tags: set[str] = pydantic.Field(default_factory=set)


class Cart(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    items: tuple[Item, ...]
    at: dt.datetime | None = None
    _seen: int = pydantic.PrivateAttr(default=0)
    _never: int = pydantic.PrivateAttr()

    @functools.cached_property
    def lock(self) -> Any:
        return threading.Lock()

    @pydantic.field_validator("items")
    @classmethod
    def _validate(cls, value: Any) -> Any:
        VALIDATIONS.append(1)
        return value


class Wrapper(pydantic.BaseModel, Generic[T]):
    item: T


IntWrapper = Wrapper[int]


class Names(pydantic.RootModel[list[str]]):
    pass


VALIDATIONS: list[int] = []

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
ODD_ZONE = dt.timezone(-dt.timedelta(hours=3, minutes=30, seconds=1, microseconds=5), "odd \ud800")

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -(2**63),
    2**63,
    -(2**63) - 1,
    10**6000,
    0.1,
    -0.0,
    1e308,
    5e-324,
    math.inf,
    -math.inf,
    "",
    "é😀\x00\n\u2028",
    "\ud800 lone",
    "\ud83d" + "\ude00",
    "~",
    b"",
    b"\x00\xff",
    bytearray(b"ab"),
    [],
    [[1], (1,), {1}],
    (),
    (1, "a", (None,)),
    set(),
    {1, "a", (2, 3)},
    frozenset({frozenset({1})}),
    {},
    {"a": 1, "b": [2]},
    {"b": 1, "a": 2},
    {"~": ["tuple", []]},
    {"a": {"~": 1, "x": (1,)}},
    {1: "int", "1": "str", (1, 2): [], None: 0, 1.5: 1},
    {"\ud800": 1},
    {"~": 1},
    collections.OrderedDict([("b", 1), ("a", (2,))]),
    complex(1, -2.5),
    complex(math.inf, -0.0),
    range(0, 10, 3),
    range(10**30),
    decimal.Decimal("9.990"),
    decimal.Decimal("-Infinity"),
    decimal.Decimal("1E+400"),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    pathlib.Path("/a/b"),
    pathlib.PurePosixPath("a"),
    pathlib.PureWindowsPath("C:\\x"),
    pathlib.Path("caf\udce9"),
    dt.date(1, 1, 1),
    dt.time(1, 2, 3, 4),
    dt.time(1, 2, tzinfo=dt.timezone.utc),
    dt.timedelta(-1, 5, 7),
    dt.timedelta.max,
    dt.datetime(2024, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
    dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
    dt.datetime(2024, 10, 27, 2, 30, fold=1),  # noqa: DTZ001
    dt.datetime(2024, 1, 2, tzinfo=ODD_ZONE),
    dt.timezone.utc,
    dt.timezone(dt.timedelta(0), "UTC"),
    ODD_ZONE,
    BERLIN,
    Color.RED,
    Color.GREEN,
    Level.LOW,
    Word.YES,
    Named.name,
    Access.READ,
    Access.READ | Access.WRITE,
    Access(0),
    http.HTTPStatus.NOT_FOUND,
    {Color.RED: Level.LOW},
    Plain(1, Plain({2}, [Slotted(1, [2])])),
    Slotted(3),
    Frozen(4),
    Point(1, Point(2)),
    Pair(1, (2,)),
    Item(sku="a", price=decimal.Decimal("1.50"), tags={"x"}),
    Cart(items=(Item(sku="a", price=decimal.Decimal(1)),), more={"deep": (1, 2)}),  # type: ignore[call-arg]
    Names(["a"]),
    {"~": {"~": [Plain((1,))]}},
]


def same(a: Any, b: Any) -> bool:
    """Equality that also sees types, order and the parts that ``==`` forgets."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return bool(a == b) and sorted(map(repr, a)) == sorted(map(repr, b))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, (dt.datetime, dt.time)):
        return (a.replace(tzinfo=None), a.fold) == (b.replace(tzinfo=None), b.fold) and same(a.tzinfo, b.tzinfo)
    if isinstance(a, (float, complex, decimal.Decimal, dt.timezone)):
        return repr(a) == repr(b)
    return bool(a == b)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle"])
@pytest.mark.parametrize("value", VALUES, ids=[f"{type(value).__name__}-{n}" for n, value in enumerate(VALUES)])
def test_comes_back_as_it_was(value: Any, serializer: str) -> None:
    codec = Codec(serializer)
    payload, live = codec.roundtrip(value)
    replayed = codec.decode(payload.codec, payload.data)
    assert same(value, live)
    assert same(value, replayed)
    assert type(payload.data) is bytes
    # ... also inside of everything else.
    nested = {"deep": [(value,), {"v": value}], 7: Plain(value)}
    assert same(nested, codec.roundtrip(nested)[1])


def test_nan_comes_back() -> None:
    for value in (math.nan, decimal.Decimal("NaN12"), decimal.Decimal("sNaN")):
        back = Codec().roundtrip([value])[1][0]
        assert type(back) is type(value)
        assert repr(back) == repr(value)


def test_json_is_strict_and_readable() -> None:
    assert Codec().encode({"a": [1, "é"]}).data == '{"a":[1,"é"]}'.encode()
    assert b"NaN" not in Codec().encode([math.nan]).data


def test_order_of_keys_is_kept() -> None:
    value = dict.fromkeys("zyxabc", 0)
    for serializer in ("json", "msgpack"):
        assert list(Codec(serializer).roundtrip(value)[1]) == list(value)


def test_first_run_shares_nothing_with_the_original() -> None:
    inner: list[int] = []
    _, live = Codec().roundtrip({"a": inner})
    inner.append(1)
    assert live == {"a": []}


def test_dataclass_is_rebuilt_without_running_it() -> None:
    value = Frozen(2)
    before = Frozen.ran
    back = Codec().roundtrip(value)[1]
    assert (back.a, back.total) == (2, 4)
    assert Frozen.ran == before


def test_dataclass_with_an_unset_field_stays_unset() -> None:
    back = Codec().roundtrip(Unset(1))[1]
    assert back.a == 1
    assert not hasattr(back, "later")


def test_dataclass_keeps_attributes_that_are_no_fields() -> None:
    value = Odd(1, seed=5)
    assert value.lock
    back = Codec().roundtrip(value)[1]
    assert back.derived == [5]
    assert "lock" not in back.__dict__, "cached properties are computed again"


def test_dataclass_keeps_slots_of_its_bases() -> None:
    value = OnSlots(1)
    value.plain = 2  # type: ignore[misc]
    value._SlotBase__hidden = 3  # type: ignore[attr-defined]
    back = Codec().roundtrip(value)[1]
    assert (back.plain, back._SlotBase__hidden) == (2, 3)


def test_generic_dataclass() -> None:
    assert Codec().roundtrip(Box[int](3))[1] == Box(3)


def test_model_is_rebuilt_without_validating() -> None:
    cart = Cart(items=(Item(sku="a", price=decimal.Decimal("1.0")),), extra_field=(1,))  # type: ignore[call-arg]
    cart._seen = 7
    assert cart.lock
    count = len(VALIDATIONS)
    back = Codec().roundtrip(cart)[1]
    assert len(VALIDATIONS) == count
    assert "lock" not in back.__dict__, "cached properties are computed again"
    assert (back.items, back.at) == (cart.items, cart.at)
    assert back._seen == 7
    assert back.model_fields_set == {"items", "extra_field"}
    assert back.extra_field == (1,)
    assert type(back.items[0].price) is decimal.Decimal
    assert not hasattr(back, "_never")


def test_parametrised_model() -> None:
    """pydantic gives the class a name in the module where it is made at top level, and none elsewhere."""
    assert Codec().roundtrip(IntWrapper(item=1))[1] == IntWrapper(item=1)
    with pytest.raises(PayloadError, match="make a subclass of it"):
        Codec().encode(Wrapper[dict[str, int]](item={"a": 1}))


def test_incomplete_model_is_refused() -> None:
    with pytest.raises(PayloadError, match="without its field price"):
        Codec().encode(Item.model_construct(sku="a"))


def test_pydantic_is_not_imported() -> None:
    code = "import sys, celery_durable.codec as c; c.Codec().encode({1: (2,)}); sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What is refused -------------------------------------------------------------------------------------------------


class StrChild(str):
    __slots__ = ()


class IntChild(int):
    pass


class DictChild(dict):  # type: ignore[type-arg]
    pass


class ListChild(list):  # type: ignore[type-arg]
    pass


class DateChild(dt.datetime):
    pass


@dataclasses.dataclass
class OnDict(dict):  # type: ignore[type-arg]
    a: int = 0


class Undecorated(Plain):
    pass


class StrangeZone(dt.tzinfo):
    def utcoffset(self, when: Any) -> Any:
        return dt.timedelta(0)


class Fat(Point):
    pass


def fat() -> Fat:
    value = Fat(1)
    value.more = 1  # type: ignore[attr-defined]
    return value


def local() -> Any:
    @dataclasses.dataclass
    class Local:
        a: int = 1

    return Local()


@dataclasses.dataclass
class Shadowed:
    a: int = 1


SHADOWED = Shadowed()


@dataclasses.dataclass  # type: ignore[no-redef]
class Shadowed:
    a: int = 1


async def coroutine() -> None:
    pass


REFUSED: list[tuple[Any, str, str]] = [
    (threading.Lock(), "lock", "plain data"),
    (object(), "object", "plain data"),
    (lambda: 1, "function", "code and not data"),
    (len, "builtin_function", "code and not data"),
    ((i for i in ()), "generator", "code and not data"),
    (Plain, "type", "cannot be rebuilt"),
    (ValueError("x"), "ValueError", "Raise it"),
    (StrChild("a"), "StrChild", "subclass of str"),
    (IntChild(1), "IntChild", "int(...)"),
    (DictChild(), "DictChild", "dict(...)"),
    (ListChild(), "ListChild", "list(...)"),
    (DateChild(2024, 1, 1), "DateChild", "subclass of datetime"),
    (collections.defaultdict(list), "defaultdict", "dict(...)"),
    (collections.Counter(), "Counter", "subclass of dict"),
    (OnDict(), "OnDict", "on top of dict"),
    (Undecorated(1), "Undecorated", "@dataclass"),
    (StrangeZone(), "StrangeZone", "zoneinfo"),
    (fat(), "Fat", "more than its fields"),
    (local(), "Local", "top level"),
    (SHADOWED, "Shadowed", "something else"),
]


@pytest.mark.parametrize(("value", "kind", "cure"), REFUSED, ids=[kind for _, kind, _ in REFUSED])
def test_refused_with_name_path_type_and_cure(value: Any, kind: str, cure: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Codec().encode({"items": [0, {"price": (value,)}]}, "the result of step 'charge'")
    text = str(caught.value)
    assert text.startswith(
        "[CD401] the result of step 'charge' cannot be stored in the journal: $.items[1].price[0] is"
    )
    assert kind in text
    assert cure in text
    assert caught.value.path == "$.items[1].price[0]"  # type: ignore[attr-defined]
    assert kind in caught.value.kind  # type: ignore[attr-defined]


def test_refused_coroutine_names_await() -> None:
    value = coroutine()
    with pytest.raises(PayloadError, match="Await it"):
        Codec().encode(value)
    value.close()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "$"),
        ({"a b": object()}, "$['a b']"),
        ({3: object()}, "$[3]"),
        ({(1,): object()}, "$[<tuple>]"),
        ({1: 0, object(): 0}, "$.<key 1>"),
        ({object()}, "$[<element>]"),
        (Plain(1, object()), "$.b"),
        (Point(1, object()), "$.y"),
        (Cart.model_construct(items=[object()]), "$.items[0]"),
        (dt.time(1, tzinfo=StrangeZone()), "$.tzinfo"),
        (collections.OrderedDict(a=object()), "$.a"),
    ],
)
def test_path(value: Any, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Codec().encode(value)
    assert caught.value.path == path  # type: ignore[attr-defined]


def _cyclic_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _cyclic_dataclass() -> Any:
    value = Plain(None)
    value.a = {"x": (value,)}
    return value


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = (value,)
    return value


@pytest.mark.parametrize("value", [_cyclic_list(), _cyclic_dataclass(), _nested(MAX_DEPTH + 1), _nested(10_000)])
def test_cycles_and_depth_are_refused(value: Any) -> None:
    with pytest.raises(PayloadError, match="nested deeper than 100 containers") as caught:
        Codec().encode(value)
    assert len(caught.value.path) < 200, "the path is abbreviated"  # type: ignore[attr-defined]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_the_deepest_allowed_value_comes_back(serializer: str) -> None:
    value = _nested(MAX_DEPTH)
    assert Codec(serializer).roundtrip(value)[1] == value


def _near_the_end_of_the_stack(call: Any) -> Any:
    def sink(frames: int) -> Any:
        return call() if frames == 0 else sink(frames - 1)

    depth = len(traceback.extract_stack())
    return sink(sys.getrecursionlimit() - depth - 60)


def test_a_deep_stack_is_no_damage() -> None:
    """A body may call steps from deep inside of itself; that is told as what it is."""
    codec = Codec()
    value = _nested(MAX_DEPTH - 1)
    payload = codec.encode(value)
    for call in (lambda: codec.encode(value), lambda: codec.decode(*payload)):
        with pytest.raises(PayloadError, match="recursion limit") as caught:
            _near_the_end_of_the_stack(call)
        assert type(caught.value) is PayloadError
    with pytest.raises(FingerprintError):
        _near_the_end_of_the_stack(lambda: fingerprint("s", "e", (value,), {}))


def test_shared_parts_do_not_explode() -> None:
    value: list[Any] = ["x"]
    for _ in range(MAX_DEPTH - 2):
        value = [value, value]
    with pytest.raises(PayloadTooLarge, match="takes more than 1000 bytes"):
        Codec(max_payload_bytes=1000).encode(value, "the result")
    with pytest.raises(PayloadTooLarge):
        Codec(max_payload_bytes=1000).encode(["x" * 100] * 100)


class Visit(pydantic.BaseModel):
    at: dt.datetime


@pytest.mark.parametrize("offset", ["Z", "+05:30", "-03:00"])
def test_times_that_pydantic_parsed_keep_their_time_zone(offset: str) -> None:
    visit = Visit.model_validate_json(f'{{"at": "2026-11-23T10:00:00{offset}"}}')
    for value in (visit, visit.at):
        again = Codec().decode(*Codec().encode(value))
        assert again == value
        assert type(getattr(again, "at", again).tzinfo) is type(visit.at.tzinfo)
        assert getattr(again, "at", again).utcoffset() == visit.at.utcoffset()
    # A zone of the same offset is the same argument, whoever made it.
    plain = visit.at.replace(tzinfo=dt.timezone(visit.at.utcoffset()))
    assert fingerprint("s", "e", (visit.at,), {}) == fingerprint("s", "e", (plain,), {})
