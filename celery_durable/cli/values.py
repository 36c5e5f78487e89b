"""Values of steps as plain JSON, for people: how ``show`` writes them, and how ``resolve`` reads them.

What a step returned may be a dataclass, a decimal, a date. A person writes ``{"id": "r1", "total": "9.99"}``; the body
must get what the operation would have returned. The annotation of its return type says what that is.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import json
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args, get_origin, get_type_hints

import click

from celery_durable.codec import preview
from celery_durable.codec.models import is_model
from celery_durable.codec.structures import is_namedtuple

__all__ = ["DoesNotFit", "class_of", "given", "plain", "type_name", "typed"]


class DoesNotFit(ValueError):
    """A JSON value is not of the annotated type; the text says where and why."""


# -- out ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON can carry it; what cannot be rewritten becomes its ``repr``."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, BaseException):
        return {"type": type_name(type(value)), "message": str(value)}
    if is_model(type(value)):
        return value.model_dump(mode="json")
    if is_namedtuple(type(value)):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    return preview(value)


def type_name(annotation: Any) -> str:
    """A type as people write it."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__qualname__ if annotation.__module__ == "builtins" else _dotted(annotation)
    return str(annotation).replace("typing.", "")


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# -- in -----------------------------------------------------------------------------------------------------------


def class_of(reference: str) -> Any:
    """The class that ``--as`` names.

    :raises click.UsageError: when there is none.
    """
    from celery_durable.codec.classes import LookupFailed, find

    if ":" not in reference:
        raise click.UsageError(f"--as {reference}: it looks like module:Class, or json")
    try:
        return find(reference)
    except LookupFailed as error:
        raise click.UsageError(f"--as {reference}: {error}") from None


def given(text: str) -> Any:
    """What a person gave as ``--value JSON``.

    :raises UsageError: where it is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(
            f"--value is not JSON: {error}. Text needs its quotes: --value '\"text\"'; no value is: --value null"
        ) from None


def typed(value: Any, annotation: Any, path: str = "value") -> Any:
    """A JSON value as the annotated type.

    :raises DoesNotFit: when it is none of that type.
    """
    while True:
        if get_origin(annotation) is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__  # NewType
        else:
            break
    origin = get_origin(annotation)
    if annotation is Any or annotation is object or isinstance(annotation, (typing.TypeVar, str)):
        return value
    if annotation is None or annotation is type(None):
        return _expect(value is None, None, "null", value, path)
    if origin is typing.Union or origin is types.UnionType:
        return _first_that_fits(value, annotation, path)
    if origin is typing.Literal:
        return _expect(value in get_args(annotation), value, f"one of {list(get_args(annotation))}", value, path)
    if origin is not None:
        return _generic(value, origin, get_args(annotation), path)
    if typing.is_typeddict(annotation):
        return _fields(value, annotation, _mapping(value, annotation, path), path)
    if not isinstance(annotation, type):
        return value
    return _of_class(value, annotation, path)


def _first_that_fits(value: Any, annotation: Any, path: str) -> Any:
    complaints = []
    for arm in get_args(annotation):
        try:
            return typed(value, arm, path)
        except DoesNotFit as error:
            complaints.append(str(error))
    raise DoesNotFit("; ".join(dict.fromkeys(complaints)))


def _generic(value: Any, origin: Any, args: tuple[Any, ...], path: str) -> Any:
    if not isinstance(origin, type):
        return value
    if issubclass(origin, collections.abc.Mapping):
        _expect(isinstance(value, dict), value, "an object", value, path)
        key, item = args if len(args) == 2 else (Any, Any)
        return {typed(k, key, f"{path} key"): typed(v, item, f"{path}[{k!r}]") for k, v in value.items()}
    if issubclass(origin, tuple) and args[1:] != (...,):
        _expect(isinstance(value, list) and len(value) == len(args), value, f"an array of {len(args)}", value, path)
        return tuple(typed(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    if issubclass(origin, collections.abc.Collection):
        _expect(isinstance(value, list), value, "an array", value, path)
        items = [typed(v, args[0] if args else Any, f"{path}[{i}]") for i, v in enumerate(value)]
        return origin(items) if origin in (tuple, set, frozenset) else items
    # A generic class of the application: its own class decides.
    return _of_class(value, origin, path)


def _of_class(value: Any, cls: type, path: str) -> Any:
    if is_model(cls):
        return _call(lambda: cls.model_validate(value), cls, value, path)  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(cls):
        values = _fields(value, cls, _mapping(value, cls, path), path)
        return _call(lambda: cls(**values), cls, value, path)
    if is_namedtuple(cls):
        values = _fields(value, cls, _mapping(value, cls, path), path)
        return _call(lambda: cls(**values), cls, value, path)
    if issubclass(cls, enum.Enum):
        return _call(lambda: cls(value), cls, value, path)
    if cls in _SIMPLE:
        words, check, make = _SIMPLE[cls]
        _expect(check(value), value, words, value, path)
        return _call(lambda: make(value), cls, value, path)
    if cls in (tuple, set, frozenset):
        return cls(_expect(isinstance(value, list), value, "an array", value, path))
    try:
        if isinstance(value, cls):
            return value
    except TypeError:
        return value  # nothing can be an instance of it: a protocol, another library's TypedDict
    raise DoesNotFit(f"{path}: there is no way to write a {type_name(cls)} as JSON")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _instant(value: str) -> dt.datetime:
    # Python 3.10 does not know the Z.
    return dt.datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)


#: Class → what it looks like in JSON, whether a value looks so, and how it is made.
_SIMPLE: Final[dict[type, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]]] = {
    bool: ("true or false", lambda v: isinstance(v, bool), lambda v: v),
    int: ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool), lambda v: v),
    float: ("a number", _number, float),
    str: ('text ("...")', _text, lambda v: v),
    bytes: ("text in base64", _text, lambda v: base64.b64decode(v, validate=True)),
    decimal.Decimal: ("text or a number", lambda v: _text(v) or _number(v), lambda v: decimal.Decimal(str(v))),
    uuid.UUID: ("text", _text, uuid.UUID),
    dt.datetime: ("text in ISO 8601", _text, _instant),
    dt.date: ("text in ISO 8601", _text, dt.date.fromisoformat),
    dt.time: ("text in ISO 8601", _text, dt.time.fromisoformat),
    dt.timedelta: ("a number of seconds", _number, lambda v: dt.timedelta(seconds=v)),
}


def _mapping(value: Any, cls: Any, path: str) -> dict[str, Any]:
    try:
        hints = get_type_hints(cls)
    except Exception:
        hints = {}
    names = [f.name for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else None
    if names is None:
        names = list(getattr(cls, "_fields", None) or hints)
    _expect(isinstance(value, dict), value, f"an object with the fields of {type_name(cls)}", value, path)
    for name in value:
        if name not in names:
            raise DoesNotFit(f"{path}: {type_name(cls)} has no field {name!r}; it has {', '.join(names)}")
    return {name: hints.get(name, Any) for name in names}


def _fields(value: dict[str, Any], cls: Any, hints: dict[str, Any], path: str) -> dict[str, Any]:
    return {name: typed(value[name], hint, f"{path}.{name}") for name, hint in hints.items() if name in value}


def _call(make: Callable[[], Any], cls: type, value: Any, path: str) -> Any:
    try:
        return make()
    except DoesNotFit:
        raise
    # Constructors and validators of the application may raise anything.
    except Exception as error:
        raise DoesNotFit(f"{path}: {preview(value, 60)} is no {type_name(cls)}: {error}") from error


def _expect(fits: bool, result: Any, words: str, value: Any, path: str) -> Any:
    if not fits:
        raise DoesNotFit(f"{path}: expected {words}, not {preview(value, 60)}")
    return result
