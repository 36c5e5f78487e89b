"""Payloads: limits, damage, serializers, and classes that changed since."""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import zlib
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from kombu import serialization

from celery_durable.codec import Codec, Payload
from celery_durable.errors import ConfigurationError, JournalCorrupted, PayloadError, PayloadTooLarge

pydantic = pytest.importorskip("pydantic")

HERE = __name__


# Limits ----------------------------------------------------------------------------------------------------------


def test_limit_on_write() -> None:
    codec = Codec(max_payload_bytes=10)
    assert codec.encode("a" * 8).data == b'"aaaaaaaa"'
    with pytest.raises(PayloadTooLarge) as caught:
        codec.encode("a" * 9, "the result of step 'load'")
    assert str(caught.value).startswith(
        "[CD402] the result of step 'load' takes 11 bytes encoded; the limit is 10 bytes "
        "(setting durable_max_payload_bytes)"
    )
    assert (caught.value.size, caught.value.limit) == (11, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["é" * 8, [1] * 11, b"a" * 9, {"a" * 10: 1}, {"a": "b" * 20}, 10**30])
def test_limit_on_write_for_everything(value: Any) -> None:
    with pytest.raises(PayloadTooLarge):
        Codec(max_payload_bytes=10).encode(value)


def test_limit_on_read_comes_before_decoding() -> None:
    tag = Codec().encode("").codec
    with pytest.raises(PayloadTooLarge, match="takes 11 bytes"):
        Codec(max_payload_bytes=10).decode(tag, b"not json at", "the row")


def test_limit_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="durable_max_payload_bytes"):
        Codec(max_payload_bytes=0)


# Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"1 2",
        b"\xff",
        b'"\xff"',
        b"[1,]",
        b'{"~":[]}',
        b'{"~":1}',
        b'{"~":["tuple"]}',
        b'{"~":["tuple",1]}',
        b'{"~":["uuid","x"]}',
        b'{"~":["bytes","a"]}',
        b'{"~":["bytes","QUJD!"]}',
        b'{"~":["datetime","yesterday"]}',
        b'{"~":["decimal","x"]}',
        b'{"~":["tuple",[]],"x":1}',
        b'{"~":["dict",[[1]]]}',
        b'{"~":["set",[[]]]}',
        b'{"~":[["x"],1]}',
        b'{"~":["enum"]}',
        b"1" * 5000,
        b'{"~":["error",{"class":"builtins:ValueError"}]}',
    ],
)
def test_damage_is_told(data: bytes) -> None:
    codec = Codec()
    with pytest.raises(JournalCorrupted, match=r"the result of step 'x' cannot be read back from the journal"):
        codec.decode(codec.encode(0).codec, data, "the result of step 'x'")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x81\xa1~\xc0"])
def test_damage_is_told_for_kombu(data: bytes) -> None:
    codec = Codec("msgpack")
    with pytest.raises(JournalCorrupted):
        codec.decode(codec.encode(0).codec, data)


def test_a_very_deep_document_is_an_error() -> None:
    codec = Codec()
    with pytest.raises(PayloadError):
        codec.decode(codec.encode(0).codec, b"[" * 100_000 + b"]" * 100_000)


def test_unknown_part_and_form() -> None:
    codec = Codec()
    tag = codec.encode(0).codec
    with pytest.raises(PayloadError, match="newer version"):
        codec.decode(tag, b'{"~":["matrix",1]}')
    with pytest.raises(PayloadError, match="form 2 of the codec"):
        codec.decode(tag + 16, b"0", "the result")


def test_other_buffers_are_read() -> None:
    codec = Codec()
    payload = codec.encode((1, 2))
    assert codec.decode(payload.codec, memoryview(payload.data)) == (1, 2)  # type: ignore[arg-type]
    assert codec.decode(payload.codec, bytearray(payload.data)) == (1, 2)  # type: ignore[arg-type]


# Serializers -----------------------------------------------------------------------------------------------------


def test_tags_are_pinned() -> None:
    """These integers are in deployed journals: changing one makes their rows unreadable."""
    assert Codec("json").encode([1]) == Payload(17, b"[1]")
    assert Codec("msgpack").encode([1]) == Payload(18, b"\x91\x01")
    assert Codec("pickle").encode([1]).codec == 20


def test_forms_are_pinned() -> None:
    """So are these bytes."""
    encode = Codec().encode
    assert encode((1,)).data == b'{"~":["tuple",[1]]}'
    assert encode({1: 2}).data == b'{"~":["dict",[[1,2]]]}'
    assert encode(b"\xff").data == b'{"~":["bytes","/w=="]}'
    assert encode(Now(1)).data == b'{"~":["dataclass","%b:Now",{"a":1}]}' % HERE.encode()
    assert encode(Kind.OLD).data == b'{"~":["enum","%b:Kind","OLD"]}' % HERE.encode()


def test_rows_are_read_after_the_setting_changed() -> None:
    value = {"a": (1, b"x")}
    for written_by in ("json", "msgpack"):
        payload = Codec(written_by).encode(value)
        for setting in ("json", "msgpack", "pickle"):
            assert Codec(setting, accept=["msgpack"]).decode(payload.codec, payload.data) == value
    assert Codec("msgpack").decode(*Codec("json").encode(value)) == value, "JSON harms nobody"
    with pytest.raises(PayloadError, match=r"serializer 'msgpack'; this application writes 'json'.*accept_serializers"):
        Codec("json").decode(payload.codec, payload.data)


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('executed')",)


def test_pickle_is_read_only_where_it_is_configured() -> None:
    payload = Codec("pickle").encode((1,))
    assert Codec("pickle").decode(payload.codec, payload.data) == (1,)
    with pytest.raises(PayloadError, match="serializer 'pickle', which can run code"):
        Codec("json").decode(payload.codec, pickle.dumps(Bomb()), "the result")
    custom = 16 + 15
    with pytest.raises(PayloadError, match="serializer 'pickle', which can run code"):
        Codec("json").decode(custom, b"\x06pickle" + pickle.dumps(Bomb()), "the result")


def test_unknown_serializer() -> None:
    with pytest.raises(
        ConfigurationError, match=r"durable_serializer = 'jsno' is not registered.*json, msgpack, pickle"
    ):
        Codec("jsno")


def test_serializer_that_carries_no_trees() -> None:
    serialization.register("lossy", lambda tree: "{}", lambda data: {}, "application/x-lossy", "utf-8")
    try:
        with pytest.raises(ConfigurationError, match="durable_serializer = 'lossy' does not work"):
            Codec("lossy")
    finally:
        serialization.unregister("lossy")


@pytest.fixture
def zipped() -> Iterator[str]:
    """An application's own serializer; it compresses, and forgets the order of keys."""
    serialization.register(
        "zipped",
        lambda tree: zlib.compress(json.dumps(tree, sort_keys=True).encode()),
        lambda data: json.loads(zlib.decompress(data)),
        "application/x-zipped",
        "binary",
    )
    yield "zipped"
    if "zipped" in serialization.registry.name_to_type:  # type: ignore[attr-defined]
        serialization.unregister("zipped")


def test_custom_serializer(zipped: str) -> None:
    codec = Codec(zipped)
    payload = codec.encode({"z": 1, "a": (2,)})
    assert payload.codec == 31
    assert payload.data.startswith(b"\x06zipped")
    assert list(codec.decode(*payload).items()) == [("z", 1), ("a", (2,))], "order is kept by us where it is not by it"
    assert Codec(accept=[zipped]).decode(*payload) == {"z": 1, "a": (2,)}
    with pytest.raises(PayloadError, match="serializer 'zipped'; this application"):
        Codec().decode(*payload)
    assert Codec(zipped, max_payload_bytes=500).encode(["a" * 5000]), "the limit is on what is stored"
    serialization.unregister("zipped")
    with pytest.raises(PayloadError, match="serializer 'zipped', which cannot be used here"):
        Codec(accept=[zipped]).decode(payload.codec, payload.data, "the result")


def test_serializer_that_fails_on_a_value() -> None:
    def dumps(tree: Any) -> str:
        if tree == [13]:
            raise OverflowError("thirteen")
        return json.dumps(tree)

    serialization.register("picky", dumps, json.loads, "application/x-picky", "utf-8")
    try:
        with pytest.raises(PayloadError, match=r"the result cannot be stored.*'picky'.*thirteen"):
            Codec("picky").encode([13], "the result")
    finally:
        serialization.unregister("picky")


# Classes that changed --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Now:
    a: int


class Kind(enum.Enum):
    OLD = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Pt(NamedTuple):
    x: int


class Doc(pydantic.BaseModel):
    a: int


def redefine(monkeypatch: pytest.MonkeyPatch, name: str, new: Any) -> None:
    new.__qualname__ = new.__name__ = name
    new.__module__ = HERE
    monkeypatch.setitem(globals(), name, new)


@dataclasses.dataclass
class Grown:
    a: int
    b: list[int] = dataclasses.field(default_factory=lambda: [7])
    c: int = 8


@dataclasses.dataclass
class Demanding:
    a: int
    b: int


@dataclasses.dataclass
class Shrunk:
    b: int = 0


class GrownDoc(pydantic.BaseModel):
    a: int
    b: list[int] = pydantic.Field(default_factory=lambda: [7])
    _p: int = pydantic.PrivateAttr(default=5)


class DemandingDoc(pydantic.BaseModel):
    a: int
    b: int


class ShrunkDoc(pydantic.BaseModel):
    b: int = 0


def test_new_fields_with_defaults_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec()
    records = [codec.encode(value) for value in (Now(1), Doc(a=1), Pt(1))]
    redefine(monkeypatch, "Now", Grown)
    redefine(monkeypatch, "Doc", GrownDoc)
    redefine(monkeypatch, "Pt", namedtuple("GrownPt", ["w", "x"], defaults=[8, 9]))
    now, doc, pt = [codec.decode(*payload) for payload in records]
    assert now == Grown(1, [7], 8)
    assert (doc.a, doc.b, doc._p, doc.model_fields_set) == (1, [7], 5, {"a"})
    assert (pt.w, pt.x) == (8, 1)


@pytest.mark.parametrize(
    ("value", "new", "cure"),
    [
        (Now(1), Demanding, "new field 'b' without a default"),
        (Now(1), Shrunk, "no field 'a' any more"),
        (Now(1), Kind, "no longer a dataclass"),
        (Now(1), print, "no longer a dataclass"),
        (Doc(a=1), DemandingDoc, "new field 'b' without a default"),
        (Doc(a=1), ShrunkDoc, "no field 'a' any more"),
        (Doc(a=1), Now, "no longer a pydantic model"),
        (Pt(1), namedtuple("P2", "x y"), "new field 'y' without a default"),
        (Pt(1), namedtuple("P3", "y"), "no field 'x' any more"),
        (Pt(1), Now, "no longer a named tuple"),
        (Kind.OLD, enum.Enum("K2", "NEW"), "no member 'OLD' any more"),
        (Kind.OLD, Now, "no longer an Enum"),
        (Bits.A | Bits.B, Kind, "no longer a Flag"),
        (Bits.A | Bits.B, enum.Flag("B2", "A"), "no flags for 3 any more"),
    ],
)
def test_changed_class(monkeypatch: pytest.MonkeyPatch, value: Any, new: Any, cure: str) -> None:
    codec = Codec()
    payload = codec.encode([value])
    name = type(value).__name__
    monkeypatch.setitem(globals(), name, new)
    with pytest.raises(PayloadError) as caught:
        codec.decode(payload.codec, payload.data, "the result of step 'x'")
    assert cure in str(caught.value)
    assert f"{HERE}.{name}" in str(caught.value)
    assert not isinstance(caught.value, JournalCorrupted)


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("no_such_module_xyz:A", "'no_such_module_xyz' is not loaded.*durable_modules"),
        (f"{HERE}:Gone", "has no 'Gone'"),
        ("__main__:Gone", "ran as a script"),
        ("os:system", "no longer a dataclass"),
        ("subprocess:Popen", "no longer a dataclass"),
        ("", "is not loaded"),
    ],
)
def test_missing_class(ref: str, why: str) -> None:
    codec = Codec()
    data = json.dumps({"~": ["dataclass", ref, {"args": "echo"}]}).encode()
    with pytest.raises(PayloadError, match=why):
        codec.decode(codec.encode(0).codec, data)


def test_undecorated_subclass_is_not_built() -> None:
    class Child(Now):
        pass

    Child.__qualname__ = "Child"
    globals()["Child"] = Child
    data = json.dumps({"~": ["dataclass", f"{HERE}:Child", {"a": 1}]}).encode()
    try:
        with pytest.raises(PayloadError, match="no longer a dataclass"):
            Codec().decode(17, data)
    finally:
        del globals()["Child"]


def test_classes_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    monkeypatch.setattr(Now, "__module__", "__main__")
    monkeypatch.setattr(__main__, "Now", Now, raising=False)
    from celery_durable.codec import tree

    monkeypatch.delitem(tree.ENCODERS, Now, raising=False)
    payload, back = Codec().roundtrip(Now(3))
    assert b"__main__:Now" in payload.data
    assert back == Now(3)
    tree.ENCODERS.pop(Now)
