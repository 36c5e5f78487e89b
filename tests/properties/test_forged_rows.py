"""Whoever can write to the database gets no code run: not by values, errors, messages or outcomes that he forges.

What comes of them is a value, or an error of this library's family; nothing is imported, nothing is unpickled, and no
more memory is taken than the bytes account for.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import pickle
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pydantic
import pytest
from celery import Celery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu import serialization

from celery_durable.codec import Codec, Payload
from celery_durable.codec.formats import PACK_TAG
from celery_durable.errors import DurableError, JournalCorrupted, PayloadError
from celery_durable.execution.outcome import value_of
from celery_durable.journal.packing import LARGEST, pack, unpack
from celery_durable.messaging import envelope as envelopes
from celery_durable.store.records import EffectCode, Entry, EntryKind, Journaled, StoredPayload

HERE = __name__
JSON = 17
#: Modules that do something when they are imported, and that nothing here has imported.
SIDE_EFFECTS = ("this", "antigravity", "idlelib.__main__", "unittest.__main__", "celery.__main__")
#: What a payload of so many bytes may make of itself, in bytes for each of its own.
GROWTH = 400
ROOM = 4_000_000


class Evil:
    def __reduce__(self) -> Any:
        return pwned, ()


def pwned() -> None:
    raise SystemExit("the attacker's code was run")


class Suit(enum.Enum):
    HEART = "h"


@dataclasses.dataclass
class Line:
    sku: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Doc(pydantic.BaseModel):
    a: int


#: What Python tells of what happens while somebody listens.
_happened: list[str] = []
_listening: list[bool] = []
_WATCHED = ("pickle.find_class", "os.system", "subprocess.Popen", "marshal.loads", "os.exec", "ctypes.dlopen")


def _hook(event: str, args: Any) -> None:
    if _listening and event in _WATCHED:
        _happened.append(event)


sys.addaudithook(_hook)


@contextmanager
def nothing_is_run() -> Iterator[None]:
    """No unpickling, no import and no program inside; and nothing but errors of the family gets out of it."""
    before = set(sys.modules)
    _happened.clear()
    _listening.append(True)
    family: DurableError | None = None
    try:
        yield
    except DurableError as error:
        family = error
    finally:
        _listening.pop()
    assert family is None or isinstance(family, Exception), "only such as a body can catch"
    new = set(sys.modules) - before
    assert not new
    assert not _happened


# -- forged trees -------------------------------------------------------------------------------------------------

references = st.one_of(
    st.sampled_from([f"{name}:x" for name in SIDE_EFFECTS]),
    st.sampled_from(
        [
            *(
                f"{HERE}:{name}"
                for name in ("Suit", "Line", "Pair", "Doc", "Evil", "pwned", "Suit.HEART", "json.loads")
            ),
            *(
                "builtins:SystemExit",
                "builtins:ValueError",
                "builtins:eval",
                "os:system",
                "subprocess:Popen",
                "celery:bin",
            ),
            *(
                "sys:modules",
                "re:RegexFlag",
                "celery_durable.errors:LeaseLost",
                "builtins:OSError",
                "",
                ":",
                ".os:x",
                "os",
            ),
        ]
    ),
    st.text(max_size=12),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | references
TAGS = (
    *("str", "int", "float", "bytes", "bytearray", "tuple", "set", "frozenset", "dict", "odict", "complex", "range"),
    *("decimal", "uuid", "path", "date", "datetime", "time", "timedelta", "timezone", "zone", "pydantic zone"),
    *("enum", "flag", "namedtuple", "dataclass", "model", "error", "repr", "unheard of"),
)


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(
        st.sampled_from(["sku", "left", "right", "a", "__class__", "__dict__", "x"]), inner, max_size=3
    )
    record = st.fixed_dictionaries(
        {"class": references, "text": st.text(max_size=5), "args": st.lists(inner, max_size=2)},
        optional={"attributes": fields, "notes": inner, "cause": inner, "traceback": inner, "lost": inner},
    )
    tagged = st.one_of(
        st.tuples(st.sampled_from(["enum", "flag", "namedtuple", "dataclass", "model"]), references, inner),
        st.tuples(st.sampled_from(["namedtuple", "dataclass", "model"]), references, fields),
        st.tuples(st.just("dataclass"), references, fields, st.lists(st.just("sku")), fields),
        st.tuples(st.just("model"), references, fields, inner, inner, inner),
        st.tuples(st.just("error"), record | inner),
        st.tuples(st.sampled_from(TAGS), st.lists(inner, max_size=3)),
        st.tuples(st.sampled_from(TAGS), inner),
        st.tuples(st.sampled_from(TAGS), inner, inner, inner),
        st.tuples(inner),
    )
    return st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=4) | st.just("~"), inner, max_size=3),
        tagged.map(lambda parts: {"~": list(parts)}),
    )


trees = st.recursive(leaves, nodes, max_leaves=12)
fast = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@fast
@given(trees)
@example({"~": ["enum", "this:x", "y"]})
@example({"~": ["error", {"class": "builtins:SystemExit", "text": "t", "args": [0]}]})
@example({"~": ["dataclass", f"{HERE}:Line", {}, [], {"__class__": 1, "__dict__": {"x": 1}}]})
@example({"~": ["dataclass", f"{HERE}:json.loads", {}]})
@example({"~": ["pydantic zone", 10**10]})
def test_a_forged_value_runs_nothing(tree: Any) -> None:
    codec = Codec()
    data = json.dumps(tree).encode("utf-8", "surrogatepass")
    with nothing_is_run():
        value = codec.decode(JSON, data)
        assert not isinstance(value, BaseException), "an error is no value"
    with nothing_is_run():
        assert isinstance(codec.decode_error(JSON, data), BaseException)
    with nothing_is_run():
        codec.decode_either(JSON, data)
    with nothing_is_run():
        value_of(codec, codec.decode(JSON, data), "an outcome")


@fast
@given(st.integers(-(2**33), 2**33) | st.integers(0, 300), st.binary(max_size=200))
@example(31, b"\x06pickle" + pickle.dumps(Evil()))
@example(31, b"\x1eapplication/x-python-serialize" + pickle.dumps(Evil()))
@example(20, pickle.dumps(Evil()))
@example(19, b"!!python/object/apply:os.system ['id']")
@example(PACK_TAG, b"\x01")
@example(JSON, b"NaN")
def test_forged_bytes_run_nothing_whatever_they_call_themselves(tag: int, data: bytes) -> None:
    for codec in (Codec(), Codec("msgpack"), Codec("yaml"), Codec(accept=["yaml", "msgpack"])):
        with nothing_is_run():
            codec.decode(tag, data)
        with nothing_is_run():
            codec.decode_error(tag, data)


VALUES = [
    {
        "id": "o-1",
        "lines": [Line("a"), Line({1: (2.5, b"x")})],
        "suit": Suit.HEART,
        "pair": Pair({1, 2}),
        "doc": Doc(a=1),
    },
    ["x" * 50, {"~": 1}, 2**70, float("nan")],
]


@fast
@given(
    st.sampled_from([("json", value) for value in VALUES] + [("msgpack", VALUES[0]), ("yaml", VALUES[0])]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_a_damaged_value_runs_nothing(wrote: tuple[str, Any], changes: list[tuple[float, int]], cut: float) -> None:
    serializer, value = wrote
    codec = Codec(serializer)
    payload = codec.encode(value)
    data = bytearray(payload.data)
    for place, byte in changes:
        data[int(place * len(data))] = byte
    for damaged in (bytes(data), bytes(data[: int(cut * len(data))])):
        with nothing_is_run():
            codec.decode(payload.codec, damaged)


# -- what grows ---------------------------------------------------------------------------------------------------


def bomb(levels: int) -> bytes:
    lines = [b"a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, levels)]
    return b"\n".join(lines)


COLLIDING = [number * (2**61 - 1) for number in range(20_000)]


@pytest.mark.parametrize(
    ("serializer", "data"),
    [
        ("json", b"[" * 400_000 + b"]" * 400_000),
        ("json", b'{"~":["tuple",[' * 30_000 + b"]]}" * 30_000),
        ("json", b"9" * 1_000_000),
        ("json", json.dumps({"~": ["set", COLLIDING]}).encode()),
        ("json", json.dumps({"~": ["frozenset", COLLIDING]}).encode()),
        ("json", json.dumps({"~": ["dict", [[key, 1] for key in COLLIDING]]}).encode()),
        ("json", json.dumps({"~": ["odict", [[key, 1] for key in COLLIDING]]}).encode()),
        ("msgpack", b"\x91" * 400_000),
        ("msgpack", b"\xdd\xff\xff\xff\xff"),
        ("msgpack", b"\xc1"),
        ("yaml", bomb(9)),
        ("yaml", b"&a [*a]"),
        ("yaml", b"{" + b",".join(b"%d: 1" % key for key in COLLIDING[:300]) + b"}"),
        # PyYAML would read these for an hour.
        ("yaml", b"[" * 2_000_000),
        ("yaml", b""),
    ],
    ids=lambda given: repr(given)[:24],
)
def test_what_would_grow_or_take_for_ever_is_refused(serializer: str, data: bytes) -> None:
    codec = Codec(serializer, max_payload_bytes=2_000_000)
    tag = codec.encode(None).codec
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            codec.decode(tag, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ROOM + GROWTH * len(data), peak


def test_a_value_with_a_few_equal_hashes_is_a_value() -> None:
    codec = Codec()
    value = {number * (2**61 - 1) for number in range(200)}
    assert codec.decode(*codec.encode(value)) == value
    with pytest.raises(PayloadError, match="the same hash"):
        codec.encode(set(COLLIDING))
    with pytest.raises(PayloadError, match="the same hash"):
        codec.encode(dict.fromkeys(COLLIDING))
    many = {f"key {number}": number for number in range(5000)} | dict(enumerate(range(5000)))
    assert codec.decode(*codec.encode(many)) == many


# -- packs --------------------------------------------------------------------------------------------------------


def packed() -> Journaled:
    steps = [
        Entry("", n, 0, EntryKind.RESULT, EffectCode.IDEMPOTENT, "step", b"f" * 32, payload=StoredPayload(JSON, b"1"))
        for n in range(5)
    ]
    entry = pack(steps)
    assert entry.payload is not None
    return Journaled(
        1, "", 0, entry.entry, int(EntryKind.CHECKPOINT), None, "checkpoint", None, None, 1, 1, 1, None, *entry.payload
    )


def repacked(header: Any, tail: bytes = b"") -> bytes:
    from zlib import crc32

    text = json.dumps(header).encode()
    body = len(text).to_bytes(4, "big") + text + tail
    return b"\x01" + crc32(body).to_bytes(4, "big") + body


numbers = st.integers(-5, 300) | st.sampled_from([10**12, -(10**12)])


@fast
@given(st.tuples(*[leaves | numbers | st.lists(leaves | numbers, max_size=3)] * 9), st.binary(max_size=64))
@example((10**12, 0, 1, "n", 1, None, None, 17, 0), b"")
@example((10**12, 0, 1, "n", 1, None, None, 17, 10**12), b"")
@example((3, 0, 1, "n", 1, None, None, "17", 1), b"x" * 99)
def test_a_forged_pack_runs_nothing_and_stays_small(header: Any, tail: bytes) -> None:
    row = packed()._replace(payload=repacked(header, tail))
    tracemalloc.start()
    try:
        with nothing_is_run():
            for step in unpack(row):
                assert step.codec is not None
                assert step.payload is not None
                Codec().decode(step.codec, step.payload)
        assert tracemalloc.get_traced_memory()[1] < ROOM + GROWTH * LARGEST
    finally:
        tracemalloc.stop()


# -- messages and outcomes ----------------------------------------------------------------------------------------


PICKLED = pickle.dumps(Evil())
GOOD: dict[str, Any] = {
    "headers": {"task": "t", "id": "x"},
    "properties": {},
    "body": "[[], {}, {}]",
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "serializer": "json",
    "compression": None,
    "route": {"queue": "celery"},
}
content_types = st.sampled_from(
    [
        "application/json",
        "application/x-python-serialize",
        "application/x-yaml",
        "application/data",
        "text/plain",
        "",
        None,
    ]
)
encodings = st.sampled_from(["utf-8", "binary", "bz2", "zlib", "rot13", "idna", "unheard of", None, 5])
plain = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
)


class Producer:
    """Takes what would be published."""

    def __init__(self) -> None:
        self.published: list[tuple[Any, dict[str, Any]]] = []

    def publish(self, body: Any, **options: Any) -> None:
        self.published.append((body, options))


@pytest.fixture(scope="module")
def app() -> Celery:
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.conf.update(accept_content=["json"], task_serializer="json")
    # What Celery imports of its own when it first publishes.
    envelopes.resend(made, GOOD, 1, producer=Producer())
    return made


@fast
@given(
    st.dictionaries(st.sampled_from(sorted(GOOD)), plain, max_size=2),
    st.binary(max_size=20)
    | st.just(PICKLED)
    | st.sampled_from(["[[],{},{}]", "[[],{}]", "{}", "x", '[1,2,{"chord":5}]']),
    content_types,
    encodings,
    st.dictionaries(
        st.sampled_from(["queue", "exchange", "declare", "serializer", "producer", "routing_key"]), plain, max_size=2
    ),
    st.dictionaries(st.sampled_from(["priority", "serializer", "retry", "on_return", "reply_to"]), plain, max_size=2),
)
@example({}, PICKLED, "application/x-python-serialize", "binary", {}, {})
@example({"serializer": "pickle"}, PICKLED, "application/x-python-serialize", "binary", {}, {"serializer": "pickle"})
@example({}, b"BZh9", "application/data", "bz2", {}, {})
def test_a_forged_message_is_passed_on_and_never_read(
    app: Celery, changed: Any, body: Any, content_type: Any, encoding: Any, route: Any, properties: Any
) -> None:
    forged = {**GOOD, "body": body, "content_type": content_type, "content_encoding": encoding, "route": route}
    forged |= {"properties": properties, **changed}
    codec = Codec()
    try:
        stored = StoredPayload(*codec.encode(forged))
    except PayloadError:
        return  # it cannot be written as a row of this codec
    with nothing_is_run():
        message = envelopes.unpack(stored, codec)
        with nothing_is_run():
            envelopes.accepted_body(app, message)
        producer = Producer()
        try:
            envelopes.resend(app, message, 1, producer=producer)
        # The broker's library may refuse its options; then it is not sent.
        except (DurableError, AttributeError, KeyError, TypeError, ValueError):
            return
        for sent, options in producer.published:
            assert sent == (body.encode() if isinstance(body, str) else body), "the bytes as they are"
            assert options["content_type"] == message["content_type"], "and what they say of themselves"


@fast
@given(plain | st.just(PICKLED), content_types, encodings)
@example(PICKLED, "application/x-python-serialize", "binary")
@example(base64.b64encode(PICKLED).decode(), "application/x-python-serialize", "utf-8")
def test_a_forged_outcome_runs_nothing(data: Any, content_type: Any, encoding: Any) -> None:
    codec = Codec(outcomes=frozenset({"application/json"}))
    with nothing_is_run():
        value_of(codec, {"content_type": content_type, "encoding": encoding, "data": data}, "an outcome")


def test_what_an_application_accepts_is_read(app: Celery) -> None:
    """The rule asks the settings; it does not just forbid."""
    content_type, encoding, data = serialization.dumps((1, 2), serializer="pickle")
    stored = {"content_type": content_type, "encoding": encoding, "data": data}
    assert value_of(Codec(outcomes=frozenset({content_type})), stored, "an outcome") == (1, 2)
    with pytest.raises(PayloadError, match="does not accept"):
        value_of(Codec(), stored, "an outcome")
    assert envelopes.accepted_body(app, GOOD) == ([], {}, {})


def test_payloads_of_errors_are_bounded_in_depth() -> None:
    record: Any = {"class": "builtins:ValueError", "text": "t", "args": []}
    for _ in range(50):
        record = {"class": "builtins:ValueError", "text": "t", "args": [{"~": ["error", record]}]}
    with pytest.raises(JournalCorrupted):
        Codec().decode_error(*Payload(JSON, json.dumps({"~": ["error", record]}).encode()))
