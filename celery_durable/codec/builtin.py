"""The standard library's value types, each as one tagged node."""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import pathlib
import uuid
import zoneinfo
from typing import Any

from .preview import preview
from .refusal import Undecodable, Unencodable
from .tree import (
    DECODERS,
    ENCODERS,
    Tree,
    TreeEncoder,
    decode_items,
    decode_pairs,
    decode_tree,
    hashable_items,
    node,
    spread,
)

__all__: list[str] = []

_PATHS: dict[type, str] = {
    pathlib.PurePosixPath: "pure-posix",
    pathlib.PureWindowsPath: "pure-windows",
    pathlib.PosixPath: "posix",
    pathlib.WindowsPath: "windows",
}
_PATH_CLASSES = {name: kind for kind, name in _PATHS.items()}


def _bytes(value: bytes | bytearray, encoder: TreeEncoder, depth: int) -> Tree:
    encoder.spend(len(value))
    return node("bytes" if type(value) is bytes else "bytearray", base64.b64encode(value).decode("ascii"))


def _tuple(value: tuple[Any, ...], encoder: TreeEncoder, depth: int) -> Tree:
    return node("tuple", encoder.items(value, depth))


def _set(value: set[Any], encoder: TreeEncoder, depth: int) -> Tree:
    return node("set", encoder.items(_spread(value), depth))


def _frozenset(value: frozenset[Any], encoder: TreeEncoder, depth: int) -> Tree:
    return node("frozenset", encoder.items(_spread(value), depth))


def _spread(value: Any) -> Any:
    if not spread(value):
        raise Unencodable("a set with too many members that have the same hash. Use a list.", type(value).__name__)
    return value


def _ordered_dict(value: collections.OrderedDict[Any, Any], encoder: TreeEncoder, depth: int) -> Tree:
    return node("odict", encoder.pairs(value, depth))


def _complex(value: complex, encoder: TreeEncoder, depth: int) -> Tree:
    return node("complex", encoder.encode(value.real), encoder.encode(value.imag))


def _range(value: range, encoder: TreeEncoder, depth: int) -> Tree:
    return node("range", *(encoder.encode(part) for part in (value.start, value.stop, value.step)))


def _decimal(value: decimal.Decimal, encoder: TreeEncoder, depth: int) -> Tree:
    return node("decimal", str(value))


def _uuid(value: uuid.UUID, encoder: TreeEncoder, depth: int) -> Tree:
    return node("uuid", value.hex)


def _path(value: pathlib.PurePath, encoder: TreeEncoder, depth: int) -> Tree:
    return node("path", _PATHS[type(value)], encoder.encode(str(value)))


def _date(value: datetime.date, encoder: TreeEncoder, depth: int) -> Tree:
    return node("date", value.isoformat())


def _timedelta(value: datetime.timedelta, encoder: TreeEncoder, depth: int) -> Tree:
    return node("timedelta", value.days, value.seconds, value.microseconds)


def _clock(value: Any, encoder: TreeEncoder, depth: int) -> Tree:
    # The wall clock and the zone are kept apart, as they are in the object: an offset alone would lose the zone,
    # and an instant alone would lose both.
    tag = "datetime" if type(value) is datetime.datetime else "time"
    zone = value.tzinfo
    if zone is None and not value.fold:
        return node(tag, value.isoformat())
    try:
        zone_tree = encoder.encode(zone, depth)
    except Unencodable as refusal:
        refusal.path.append(".tzinfo")
        raise
    return node(tag, value.replace(tzinfo=None).isoformat(), value.fold, zone_tree)


def _timezone(value: datetime.timezone, encoder: TreeEncoder, depth: int) -> Tree:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return node("timezone", offset.days, offset.seconds, offset.microseconds, *(encoder.encode(n) for n in name))


def _zone(value: zoneinfo.ZoneInfo, encoder: TreeEncoder, depth: int) -> Tree:
    if value.key is None:
        raise Unencodable(
            "a time zone read from a file without a name, which cannot be found again. Use zoneinfo.ZoneInfo(key).",
            "zoneinfo.ZoneInfo",
        )
    return node("zone", encoder.encode(value.key))


def _decode_clock(tagged: list[Any]) -> Any:
    kind = datetime.datetime if tagged[0] == "datetime" else datetime.time
    value = kind.fromisoformat(tagged[1])
    if len(tagged) == 2:
        return value
    return value.replace(fold=tagged[2], tzinfo=decode_tree(tagged[3]))


def _decode_timezone(tagged: list[Any]) -> datetime.timezone:
    _, days, seconds, microseconds, *name = tagged
    return datetime.timezone(datetime.timedelta(days, seconds, microseconds), *(decode_tree(n) for n in name))


def _decode_zone(tagged: list[Any]) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(decode_tree(tagged[1]))
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise Undecodable(
            f"the time zone {preview(tagged[1], 80)} is not known here; install the tzdata package in this environment"
        ) from error


def _decode_path(tagged: list[Any]) -> pathlib.PurePath:
    try:
        path: pathlib.PurePath = _PATH_CLASSES[tagged[1]](decode_tree(tagged[2]))
    except NotImplementedError as error:
        raise Undecodable(f"a {tagged[1]} path cannot be used on this system; use pathlib.PurePath in steps") from error
    return path


ENCODERS.update(
    {
        bytes: _bytes,
        bytearray: _bytes,
        tuple: _tuple,
        set: _set,
        frozenset: _frozenset,
        collections.OrderedDict: _ordered_dict,
        complex: _complex,
        range: _range,
        decimal.Decimal: _decimal,
        uuid.UUID: _uuid,
        datetime.date: _date,
        datetime.timedelta: _timedelta,
        datetime.datetime: _clock,
        datetime.time: _clock,
        datetime.timezone: _timezone,
        zoneinfo.ZoneInfo: _zone,
        **dict.fromkeys(_PATHS, _path),
    }
)
DECODERS.update(
    {
        "bytes": lambda tagged: base64.b64decode(tagged[1], validate=True),
        "bytearray": lambda tagged: bytearray(base64.b64decode(tagged[1], validate=True)),
        "tuple": lambda tagged: tuple(decode_items(tagged)),
        "set": lambda tagged: set(hashable_items(tagged)),
        "frozenset": lambda tagged: frozenset(hashable_items(tagged)),
        "odict": lambda tagged: collections.OrderedDict(decode_pairs(tagged)),
        "complex": lambda tagged: complex(decode_tree(tagged[1]), decode_tree(tagged[2])),
        "range": lambda tagged: range(*map(decode_tree, tagged[1:])),
        "decimal": lambda tagged: decimal.Decimal(tagged[1]),
        "uuid": lambda tagged: uuid.UUID(tagged[1]),
        "date": lambda tagged: datetime.date.fromisoformat(tagged[1]),
        "timedelta": lambda tagged: datetime.timedelta(*tagged[1:]),
        "datetime": _decode_clock,
        "time": _decode_clock,
        "timezone": _decode_timezone,
        "zone": _decode_zone,
        "path": _decode_path,
    }
)
