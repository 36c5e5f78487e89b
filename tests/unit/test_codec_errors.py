"""Exceptions as data: what a body catches at replay is what it caught the first time."""

from __future__ import annotations

import errno
import sys
import threading
from typing import Any

import pytest

from celery_durable.codec import Codec
from celery_durable.errors import AmbiguousEffect, ErrorPlaceholder, JournalCorrupted, PayloadTooLarge, ReplayDivergence


class Declined(Exception):
    inits = 0

    def __init__(self, code: int, *, reason: str) -> None:
        type(self).inits += 1
        super().__init__(f"declined: {reason}")
        self.code = code
        self.reason = reason


class Unfair(Exception):
    """Cannot be built from its args."""

    def __init__(self) -> None:
        super().__init__("a", "b")

    def __new__(cls, *args: Any) -> Unfair:
        if args:
            raise TypeError("no arguments, please")
        return super().__new__(cls)


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class FileTrouble(OSError):
    pass


class Fatal(BaseException):
    pass


def back(exc: BaseException, codec: Codec | None = None) -> Any:
    codec = codec or Codec()
    payload, live = codec.roundtrip_error(exc)
    replayed = codec.decode_error(payload.codec, payload.data)
    assert type(live) is type(replayed)
    assert live.args == replayed.args
    assert str(live) == str(replayed)
    return replayed


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bad", 3, (1, b"x")),
        KeyError("k"),
        Exception(),
        FileNotFoundError(errno.ENOENT, "no file", "/tmp/x"),
        OSError(errno.EXDEV, "cross", "a", None, "b"),
        OSError("only text"),
        FileTrouble(errno.EIO, "io", "f"),
        TimeoutError("late"),
        ConnectionResetError(104, "reset"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        Fatal("x"),
        Unfair(),
        Declined(7, reason="funds"),
        AmbiguousEffect("text", step="charge"),
        ReplayDivergence("text", code="CD101"),
        IndexError("\ud800"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_same_class_args_text_and_attributes(exc: BaseException) -> None:
    got = back(exc)
    assert type(got) is type(exc)
    assert got.args == exc.args
    assert str(got) == str(exc)
    assert {k: v for k, v in got.__dict__.items() if k != "durable_traceback"} == exc.__dict__


def test_constructor_of_the_application_is_not_called() -> None:
    exc = Declined(7, reason="funds")
    before = Declined.inits
    got = back(exc)
    assert Declined.inits == before
    assert (got.code, got.reason) == (7, "funds")


def test_state_of_builtin_errors() -> None:
    got = back(FileNotFoundError(errno.ENOENT, "no", "/tmp/x"))
    assert (got.errno, got.strerror, got.filename) == (errno.ENOENT, "no", "/tmp/x")
    got = back(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert (got.encoding, got.object, got.start) == ("utf-8", b"\xff", 0)
    got = back(ImportError("no", name="mod", path="/p"))
    assert (got.name, got.path, got.msg) == ("mod", "/p", "no")
    assert back(NameError("x", name="x")).name == "x"
    assert back(StopIteration(5)).value == 5
    assert back(SystemExit(3)).code == 3


def test_notes_cause_and_traceback() -> None:
    def inner() -> None:
        try:
            root = KeyError("root")
            root.__cause__ = IndexError("one level is kept, not two")
            raise root
        except KeyError as error:
            raise ValueError("outer") from error

    try:
        inner()
    except ValueError as error:
        error.__notes__ = ["read me"]  # type: ignore[attr-defined]
        exc = error
    codec = Codec()
    payload, live = codec.roundtrip_error(exc)
    assert live.__traceback__ is exc.__traceback__, "the first run keeps the frames"
    got: Any = codec.decode_error(*payload)
    assert got.__notes__ == ["read me"]
    assert type(got.__cause__) is KeyError
    assert got.__cause__.args == ("root",)
    assert got.__cause__.__cause__ is None
    assert "in inner" in got.durable_traceback
    again: Any = codec.decode_error(*codec.encode_error(got))
    assert again.durable_traceback == got.durable_traceback
    assert "durable_traceback" not in codec.encode_error(got).data.decode()


def test_what_cannot_be_stored_degrades() -> None:
    exc = Declined(1, reason="x")
    exc.args = (threading.Lock(), "kept")
    exc.response = threading.Lock()  # type: ignore[attr-defined]
    exc.extra = {"a": (1,)}  # type: ignore[attr-defined]
    got = back(exc)
    assert got.args[0].startswith("<unlocked _thread.lock")
    assert got.args[1] == "kept"
    assert not hasattr(got, "response")
    assert got.extra == {"a": (1,)}
    assert b'"lost":["response"]' in Codec().encode_error(exc).data


def test_broken_str() -> None:
    payload = Codec().encode_error(BadText("x"))
    assert type(Codec().decode_error(*payload)) is BadText


def test_errors_inside_errors() -> None:
    exc = Declined(1, reason="x")
    exc.origin = KeyError("inner")  # type: ignore[attr-defined]
    got = back(exc)
    assert type(got.origin) is KeyError
    loop = ValueError()
    loop.args = (loop,)
    assert type(Codec().decode_error(*Codec().encode_error(loop)).args[0]) is ValueError


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_exception_group() -> None:
    group = ExceptionGroup("both", [ValueError("a"), ExceptionGroup("deep", [KeyError("b")])])  # type: ignore[name-defined]  # noqa: F821
    got = Codec().roundtrip_error(group)[1]
    assert type(got) is type(group)
    assert got.message == "both"
    assert [type(e) for e in got.exceptions] == [ValueError, type(group)]
    assert got.exceptions[1].exceptions[0].args == ("b",)


def test_placeholder_for_a_class_that_is_gone() -> None:
    class Local(Exception):
        pass

    got = back(Local("why", 2))
    assert type(got) is ErrorPlaceholder
    name = f"{__name__}.test_placeholder_for_a_class_that_is_gone.<locals>.Local"
    assert got.original == name
    assert got.original_args == ("why", 2)
    assert f"{name}: ('why', 2)" in str(got)
    # A placeholder that is recorded again stays one.
    again = back(got)
    assert type(again) is ErrorPlaceholder
    assert again.original == name
    assert str(again) == str(got)


@pytest.mark.parametrize(
    "ref", ["os:system", "builtins:dict", "builtins:list", "no_such_module_xyz:E", f"{__name__}:Gone"]
)
def test_placeholder_for_what_is_no_exception(ref: str) -> None:
    data = b'{"~":["error",{"class":"%b","text":"t","args":["echo"]}]}' % ref.encode()
    got: Any = Codec().decode_error(17, data)
    assert type(got) is ErrorPlaceholder
    assert got.original == ref.replace(":", ".")


def test_placeholder_for_a_class_that_cannot_be_made() -> None:
    pydantic = pytest.importorskip("pydantic")
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(int).validate_python("x")
    got = back(caught.value)
    assert type(got) is ErrorPlaceholder
    assert "ValidationError" in got.original
    assert "valid integer" in str(got)


@pytest.mark.parametrize("limit", [2500, 1000, 250])
def test_limit_thins_the_record_out(limit: int) -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise Declined(1, reason="r" * 50)

    try:
        deep(15)
    except Declined as error:
        exc = error
    exc.big = "b" * 700  # type: ignore[attr-defined]
    codec = Codec(max_payload_bytes=limit)
    payload = codec.encode_error(exc)
    assert len(payload.data) <= limit
    got: Any = codec.decode_error(*payload)
    assert type(got) is Declined
    assert "declined: rrr" in str(got)
    assert hasattr(got, "code") == (limit >= 1000)


def test_huge_argument_is_shortened() -> None:
    codec = Codec(max_payload_bytes=2000)
    got = codec.decode_error(*codec.encode_error(ValueError("x" * 10**6, 3)))
    assert type(got) is ValueError
    assert got.args[0].endswith("...")
    assert got.args[1] == 3


def test_impossible_limit_is_told() -> None:
    with pytest.raises(PayloadTooLarge, match="the error of step 'x'"):
        Codec(max_payload_bytes=20).encode_error(ValueError("x"), "the error of step 'x'")


def test_a_value_is_no_error() -> None:
    codec = Codec()
    with pytest.raises(JournalCorrupted, match="it holds a int instead of an error"):
        codec.decode_error(*codec.encode(1))


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_with_every_serializer(serializer: str) -> None:
    got = back(Declined(1, reason="é\ud800"), Codec(serializer))
    assert got.reason == "é\ud800"
