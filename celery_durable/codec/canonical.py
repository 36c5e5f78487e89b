"""Values as canonical bytes, from which fingerprints are made.

Unlike the journal's form of a value, these bytes are never read back; they have to be the same in every process, on
every machine and after every deploy, and different for any two values that differ. Each form starts with a letter of
its own and ends where its length says, or at a delimiter that it cannot contain, so that forms can follow each other
without a risk of confusion.

**The bytes are a contract with every journal ever written**; see :mod:`celery_durable.identity`.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from celery_durable.errors import FingerprintError

from .models import is_model, is_zone
from .refusal import MAX_DEPTH, key_segment, path_text, type_name
from .structures import is_namedtuple

__all__ = ["NoCanonicalForm", "canonical", "form_of", "lengthy", "refusal", "text_form", "too_deep"]

_SMALL: Final = 2**63
_NAN: Final = b"f\x7f\xf8\x00\x00\x00\x00\x00\x00"
_pack_float: Final = struct.Struct(">cd").pack


def canonical(value: Any, where: str = "value") -> bytes:
    """The canonical bytes of a value: equal for equal values of equal types, different for all others.

    Dicts are taken without order, as they compare; sets too. ``-0.0`` is ``0.0``, and all NaNs are one.

    :param where: names the value in an error.
    :raises FingerprintError: when there is no such form.
    """
    try:
        return form_of(value, 0)
    except NoCanonicalForm as error:
        raise refusal(where, error) from error
    except RecursionError:
        raise refusal(where, too_deep()) from None


class NoCanonicalForm(Exception):
    """Internal: a value without canonical form, with the path to it from the inside out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def too_deep() -> NoCanonicalForm:
    """For cycles, and for what is nested as deep as one."""
    return NoCanonicalForm(f"nested deeper than {MAX_DEPTH} containers, or a container that contains itself")


def refusal(where: str, error: NoCanonicalForm) -> FingerprintError:
    """The same for a user: ``where`` names the value, such as "argument 1 of step 'charge'"."""
    path = path_text(error.path)
    return FingerprintError(
        f"{where} has no canonical form to take a fingerprint of: {path} is {error}. Say what identifies the call with "
        "fingerprint=, for example @step(fingerprint=lambda order: order.id). Leave secrets and values that differ "
        "between attempts (times, random numbers) out of it.",
        where=where,
        path=path,
    )


_Canonical = Callable[[Any, int], bytes]


def form_of(value: Any, depth: int) -> bytes:
    """The canonical bytes of a value that is nested in ``depth`` containers.

    :raises NoCanonicalForm: when there are none.
    """
    cls: Any = type(value)
    form = FORMS.get(cls)
    return form(value, depth) if form is not None else _form_of_class(cls)(value, depth)


def lengthy(text: str) -> bytes:
    """A text with its length in front."""
    data = text.encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(data), data)


def text_form(value: str, depth: int) -> bytes:
    """The form of a ``str``."""
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _int(value: int, depth: int) -> bytes:
    # Python limits the length of decimal conversions, not that of hexadecimal ones.
    return b"i%d," % value if -_SMALL <= value < _SMALL else b"I%x," % value


def _float(value: float, depth: int) -> bytes:
    if value != value:
        return _NAN
    # Adding zero turns -0.0 into 0.0, which it equals.
    return _pack_float(b"f", value + 0.0)


def _bytes(value: bytes, depth: int) -> bytes:
    return b"b%d:%b" % (len(value), value)


def _bytearray(value: bytearray, depth: int) -> bytes:
    return b"y%d:%b" % (len(value), bytes(value))


def _items(values: Iterable[Any], depth: int) -> list[bytes]:
    if depth >= MAX_DEPTH:
        raise too_deep()
    depth += 1
    forms: list[bytes] = []
    append = forms.append
    try:
        for value in values:
            append(form_of(value, depth))
    except NoCanonicalForm as error:
        error.path.append("[<element>]" if isinstance(values, (set, frozenset)) else f"[{len(forms)}]")
        raise
    return forms


def _list(value: list[Any], depth: int) -> bytes:
    return b"l%d:%b" % (len(value), b"".join(_items(value, depth)))


def _tuple(value: tuple[Any, ...], depth: int) -> bytes:
    return b"t%d:%b" % (len(value), b"".join(_items(value, depth)))


def _set(value: set[Any], depth: int) -> bytes:
    return b"S%d:%b" % (len(value), b"".join(sorted(_items(value, depth))))


def _frozenset(value: frozenset[Any], depth: int) -> bytes:
    return b"Z%d:%b" % (len(value), b"".join(sorted(_items(value, depth))))


def _entries(value: dict[Any, Any], depth: int) -> list[bytes]:
    if depth >= MAX_DEPTH:
        raise too_deep()
    depth += 1
    forms: list[bytes] = []
    segment = ""
    try:
        for key, part in value.items():
            segment = f".<key {len(forms)}>"
            key_form = form_of(key, depth)
            segment = key_segment(key)
            forms.append(key_form + form_of(part, depth))
    except NoCanonicalForm as error:
        error.path.append(segment)
        raise
    return forms


def _dict(value: dict[Any, Any], depth: int) -> bytes:
    return b"d%d:%b" % (len(value), b"".join(sorted(_entries(value, depth))))


def _ordered_dict(value: dict[Any, Any], depth: int) -> bytes:
    return b"o%d:%b" % (len(value), b"".join(_entries(value, depth)))


def _named(kind: str, *parts: bytes) -> bytes:
    """A form under a name: for the types that are too many for letters."""
    return b"x%b%d:%b" % (lengthy(kind), len(parts), b"".join(parts))


def _clock(value: Any, depth: int) -> bytes:
    kind = "datetime" if type(value) is datetime.datetime else "time"
    wall = lengthy(value.replace(tzinfo=None).isoformat())
    if value.tzinfo is None:
        return _named(kind, wall, b"%d," % value.fold)
    try:
        return _named(kind, wall, b"%d," % value.fold, form_of(value.tzinfo, depth))
    except NoCanonicalForm as error:
        error.path.append(".tzinfo")
        raise


def _timedelta(value: datetime.timedelta, depth: int) -> bytes:
    return _named("timedelta", b"%d,%d,%d," % (value.days, value.seconds, value.microseconds))


def _timezone(value: datetime.timezone, depth: int) -> bytes:
    # Without its display name: two zones of one offset are equal.
    return _named("timezone", _timedelta(value.utcoffset(None), depth))


def _zone(value: zoneinfo.ZoneInfo, depth: int) -> bytes:
    if value.key is None:
        raise NoCanonicalForm("a time zone without a name")
    return _named("zone", lengthy(value.key))


def _range(value: range, depth: int) -> bytes:
    return _named("range", *(_int(part, depth) for part in (value.start, value.stop, value.step)))


def _enum(value: Any, depth: int) -> bytes:
    cls = type(value)
    if value._name_ in cls.__members__:
        return _named("enum", _class_name(cls), lengthy(value._name_))
    return _named("flag", _class_name(cls), form_of(value._value_, depth))


def _class_name(cls: type) -> bytes:
    return lengthy(f"{cls.__module__}:{cls.__qualname__}")


def _fields(kind: str, cls: type, values: dict[str, Any], depth: int) -> bytes:
    """Fields that have their default are left out: so one that is added with a default changes no value that is
    known without it.
    """
    if depth >= MAX_DEPTH:
        raise too_deep()
    depth += 1
    defaults = _defaults(cls)
    forms: list[bytes] = []
    name = ""
    try:
        for name, part in values.items():
            form = form_of(part, depth)
            if defaults.get(name) != form:
                forms.append(text_form(name, depth) + form)
    except NoCanonicalForm as error:
        error.path.append(key_segment(name))
        raise
    return _named(kind, _class_name(cls), b"d%d:%b" % (len(forms), b"".join(sorted(forms))))


@functools.lru_cache(maxsize=1024)
def _defaults(cls: Any) -> dict[str, bytes]:
    """The forms of the defaults of a class's fields, as far as every process knows them to be the same."""
    found: dict[str, bytes] = {}
    for name, default, factory in _given_defaults(cls):
        try:
            if factory is None:
                found[name] = form_of(default, 0)
            elif isinstance(factory, type):
                # Of a class with fields: an instance of which nothing but defaults is known.
                known = factory in _EMPTY
                found[name] = form_of(factory(), 0) if known else _fields(_kind_of_class(factory), factory, {}, 0)
        except NoCanonicalForm:
            continue  # nothing that has a form is equal to it
    return found


def _given_defaults(cls: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, default, and factory of defaults, where there is one.

    A function as a factory may give another value each time (a date, an id), and says nothing that can be relied on.
    """
    if is_model(cls):
        for name, field in cls.model_fields.items():
            if field.default_factory is not None:
                yield name, None, field.default_factory
            elif not field.is_required():
                yield name, field.default, None
    elif is_namedtuple(cls):
        for name, default in cls._field_defaults.items():
            yield name, default, None
    else:
        for field in dataclasses.fields(cls):
            if field.default_factory is not dataclasses.MISSING:
                yield field.name, None, field.default_factory
            elif field.default is not dataclasses.MISSING:
                yield field.name, field.default, None


def _kind_of_class(cls: Any) -> str:
    kind = _KINDS.get(_form_of_class(cls))
    if kind is None:
        raise NoCanonicalForm(f"no class with fields: {type_name(cls)!r}")
    return kind


def _namedtuple(value: Any, depth: int) -> bytes:
    return _fields("namedtuple", type(value), dict(zip(value._fields, value, strict=True)), depth)


def _dataclass(value: Any, depth: int) -> bytes:
    # All fields, also those with compare=False: a field left out here could differ unnoticed.
    cls = type(value)
    present = {f.name: getattr(value, f.name) for f in dataclasses.fields(cls) if hasattr(value, f.name)}
    return _fields("dataclass", cls, present, depth)


def _model(value: Any, depth: int) -> bytes:
    cls = type(value)
    values = {name: part for name, part in value.__dict__.items() if name in cls.model_fields}
    return _fields("model", cls, values | (value.__pydantic_extra__ or {}), depth)


_KINDS: Final[dict[_Canonical, str]] = {_namedtuple: "namedtuple", _dataclass: "dataclass", _model: "model"}
#: Factories whose value is the same in every process.
_EMPTY: Final = frozenset(
    {bool, bytes, bytearray, collections.OrderedDict, dict, float, frozenset, int, list, set, str, tuple}
)


@functools.lru_cache(maxsize=1024)
def _form_of_class(cls: Any) -> _Canonical:
    """The form of a class of the application.

    :raises NoCanonicalForm: when there is none.
    """
    if isinstance(cls, enum.EnumMeta):
        return _enum
    if is_model(cls):
        return _model
    if is_zone(cls):
        return _timezone
    if is_namedtuple(cls):
        return _namedtuple
    # Its own decorator, not an inherited one: fields() of an undecorated subclass would leave things out.
    if "__dataclass_fields__" in cls.__dict__ and all(base.__module__ != "builtins" for base in cls.__mro__[:-1]):
        return _dataclass
    raise NoCanonicalForm(f"a {type_name(cls)!r}")


FORMS: Final[dict[type, _Canonical]] = {
    type(None): lambda value, depth: b"N",
    bool: lambda value, depth: b"T" if value else b"F",
    str: text_form,
    int: _int,
    float: _float,
    complex: lambda value, depth: _named("complex", _float(value.real, depth), _float(value.imag, depth)),
    bytes: _bytes,
    bytearray: _bytearray,
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
    dict: _dict,
    collections.OrderedDict: _ordered_dict,
    datetime.datetime: _clock,
    datetime.time: _clock,
    datetime.date: lambda value, depth: _named("date", lengthy(value.isoformat())),
    datetime.timedelta: _timedelta,
    datetime.timezone: _timezone,
    zoneinfo.ZoneInfo: _zone,
    decimal.Decimal: lambda value, depth: _named("decimal", lengthy(str(value))),
    uuid.UUID: lambda value, depth: _named("uuid", value.bytes),
    range: _range,
    # As pure paths: what a path names does not depend on the system that asks.
    **dict.fromkeys(
        (pathlib.PurePosixPath, pathlib.PosixPath), lambda value, depth: _named("posix path", lengthy(str(value)))
    ),
    **dict.fromkeys(
        (pathlib.PureWindowsPath, pathlib.WindowsPath),
        lambda value, depth: _named("windows path", lengthy(str(value))),
    ),
}
