"""Whatever can be built comes back from the journal as it was; and what differs has another fingerprint."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import zoneinfo
from typing import Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from celery_durable.codec import Codec, preview
from celery_durable.errors import PayloadError
from celery_durable.identity import canonical, fingerprint, fingerprint_of, global_key, idempotency_key


class Suit(enum.Enum):
    HEART = "h"
    SPADE = ("s", 1)


class Access(enum.IntFlag):
    R = 1
    W = 2
    X = 4


@dataclasses.dataclass(frozen=True)
class Line:
    sku: Any
    price: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


#: All of Unicode and the lone surrogates besides.
texts = st.text(st.characters(exclude_categories=()), max_size=8)
zones = st.none() | st.sampled_from(
    [
        dt.timezone.utc,
        dt.timezone(dt.timedelta(hours=-3, minutes=-30)),
        zoneinfo.ZoneInfo("Europe/Berlin"),
        zoneinfo.ZoneInfo("America/New_York"),
    ]
)


def _fold(value: Any, fold: int) -> Any:
    return value.replace(fold=fold)


hashable_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=8)
    | st.builds(_fold, st.datetimes(timezones=zones, allow_imaginary=True), st.integers(0, 1))
    | st.dates()
    | st.builds(_fold, st.times(), st.integers(0, 1))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from(Suit)
    | st.integers(0, 7).map(Access)
    | st.complex_numbers(allow_nan=False)
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Line, inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=4,
)
values = st.recursive(
    hashables | st.binary(max_size=4).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(texts | st.just("~"), inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.builds(Line, inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)

CODECS = [Codec("json"), Codec("msgpack")]


def same(a: Any, b: Any) -> bool:
    """Equality that also sees types, order and the parts that ``==`` forgets."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        # Equal elements of other types (1 and True) would pass; their forms do not.
        return bool(a == b) and canonical(a) == canonical(b)
    if isinstance(a, Line):
        return same([a.sku, a.price], [b.sku, b.price])
    if isinstance(a, (dt.datetime, dt.time)):
        return bool(
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.fold == b.fold
            and type(a.tzinfo) is type(b.tzinfo)
            and a.tzinfo == b.tzinfo
        )
    return bool(a == b) and repr(a) == repr(b)


@given(values)
@example({"~": ["tuple", [1]]})
@example("\ud83d\ude00")
@example([-0.0, 2**63, -(2**63)])
def test_roundtrip(value: Any) -> None:
    for codec in CODECS:
        payload, live = codec.roundtrip(value)
        assert same(live, value)
        assert same(codec.decode(*payload), value)


@given(values)
def test_a_replayed_value_has_the_fingerprint_of_the_live_one(value: Any) -> None:
    """A step's result is the argument of the next one: were they different, every replay would diverge."""
    assert canonical(CODECS[0].roundtrip(value)[1]) == canonical(value)


@given(values, values)
@example(1, True)
@example(1, 1.0)
@example(1, "1")
@example(("ab", "c"), ("a", "bc"))
@example([[], []], [[[]]])
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_forms_are_equal_only_for_equal_values(a: Any, b: Any) -> None:
    if canonical(a) == canonical(b):
        assert a == b
        assert type(a) is type(b)
        assert fingerprint_of("s", "e", a) == fingerprint_of("s", "e", b)
    else:
        assert fingerprint("s", "e", (a,), {}) != fingerprint("s", "e", (b,), {})
        assert fingerprint_of("s", "e", a) != fingerprint_of("s", "e", b)


short_texts = st.text("ab:,0123s", max_size=4)
arguments = st.lists(short_texts | st.integers(0, 12) | st.lists(short_texts, max_size=2), max_size=3).map(tuple)
keywords = st.dictionaries(short_texts, short_texts | st.integers(0, 12), max_size=2)
calls = st.tuples(short_texts, short_texts, arguments, keywords)


@given(calls, calls)
@example(("s", "e", ("ab", "c"), {}), ("s", "e", ("a", "bc"), {}))
@example(("s", "e", ("a", 1), {}), ("s", "e", (), {"a": 1}))
@example(("se", "", (), {}), ("s", "e", (), {}))
def test_different_calls_have_different_fingerprints(a: Any, b: Any) -> None:
    """From an alphabet of our own delimiters, so that a sloppy encoding would collide."""
    assert (fingerprint(*a) == fingerprint(*b)) == (a == b)
    assert fingerprint(*a) != fingerprint_of(b[0], b[1], b[2])


parts = st.tuples(short_texts, short_texts, short_texts, short_texts.map(str.encode), st.integers(0, 30), short_texts)


@given(parts, parts)
@example(("n", "a", "b", b"1", 1, ""), ("n", "a", "b", b"", 11, ""))
@example(("n", "a", "b", b"", 1, "0"), ("n", "a", "b0", b"", 1, ""))
@example(("n", "a", "b", b"", 1, ""), ("na", "", "b", b"", 1, ""))
def test_different_effects_have_different_keys(a: Any, b: Any) -> None:
    assert (idempotency_key(*a) == idempotency_key(*b)) == (a == b)
    assert (global_key(a[0], a[1]) == global_key(b[0], b[1])) == (a[:2] == b[:2])
    assert idempotency_key(*a) != global_key(b[0], b[1])


def tells(codec: Codec, tag: int, data: bytes) -> None:
    """Decoding may fail in one way only."""
    told = ""
    try:
        codec.decode(tag, data, "the result")
    except PayloadError as error:
        told = str(error)
    assert not told or "the result" in told


@given(st.binary(max_size=60), st.sampled_from(CODECS), st.sampled_from([17, 18, 20, 31, 0, 33]))
def test_any_bytes_are_a_value_or_a_told_error(data: bytes, codec: Codec, tag: int) -> None:
    tells(codec, tag, data)


json_documents = st.recursive(
    st.none() | st.integers(-3, 3) | st.sampled_from(["tuple", "dict", "a", "builtins:dict", "os:system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "~", "class", "args"]), inner, max_size=2)
        | st.builds(
            lambda tag, rest: {"~": [tag, *rest]},
            st.sampled_from(
                ["tuple", "dict", "set", "enum", "flag", "dataclass", "model", "namedtuple", "error", "zone"]
            ),
            st.lists(inner, max_size=4),
        )
    ),
    max_leaves=10,
)


@given(json_documents)
def test_any_document_is_a_value_or_a_told_error(document: Any) -> None:
    tells(CODECS[0], 17, json.dumps(document).encode())


@given(
    st.lists(values, max_size=3), st.dictionaries(texts.filter(lambda t: not t.startswith("__")), values, max_size=2)
)
def test_errors_roundtrip(args: list[Any], attributes: dict[str, Any]) -> None:
    exc = ValueError(*args)
    plain = {k: v for k, v in attributes.items() if k.isidentifier()}
    exc.__dict__.update(plain)
    for codec in CODECS:
        got = codec.decode_error(*codec.encode_error(exc))
        assert type(got) is ValueError
        assert same(got.args, exc.args)
        assert {k: canonical(v) for k, v in got.__dict__.items()} == {k: canonical(v) for k, v in plain.items()}


@given(values, st.integers(10, 300))
def test_preview(value: Any, limit: int) -> None:
    text = preview(value, limit)
    assert len(text) <= limit
    assert text.isprintable()


@given(st.floats(allow_nan=True))
def test_nan(value: float) -> None:
    back = CODECS[0].roundtrip([value])[1][0]
    assert back == value or (math.isnan(back) and math.isnan(value))
    assert canonical(back) == canonical(value)
