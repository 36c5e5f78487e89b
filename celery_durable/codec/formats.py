"""Trees <-> bytes: the serializers, and the small integer on each row that names one.

A row says which serializer wrote it, because the setting may change while executions live. But the setting decides
which may be read: whoever can write to the database must not be able to choose one that runs code, or grows without
bounds. The integer is ``version * 16 + format``, where the version is that of the tree's form. Bits above the lowest
eight are free; the cipher will use them.
"""

from __future__ import annotations

import functools
import importlib
import json
import json.encoder
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from kombu.serialization import dumps, loads, registry  # type: ignore[attr-defined]

from celery_durable.errors import ConfigurationError, PayloadError

from .preview import preview
from .refusal import MAX_DEPTH
from .tree import Tree, check_tree

__all__ = ["JSON_TAG", "PACK_TAG", "Format", "format_of_row", "format_of_setting"]

#: The version of the tree's form; raised when trees of an older form would be misread.
VERSION = 1

_FORMATS = {"json": 1, "msgpack": 2, "yaml": 3, "pickle": 4}
#: The format of serializers that an application registered with kombu; their name is in front of the data.
_CUSTOM = 15
#: No serializer's: several steps in one row, each with a tag of its own (see :mod:`~.journal.packing`).
PACK_TAG = VERSION * 16 + 14
_PICKLE_TYPE: Final = "application/x-python-serialize"
#: How deep YAML may be nested: a container of a value takes at most four, as ``{"~": ["dict", [[key, value]]]}``.
_DEEPEST: Final = 5 * MAX_DEPTH
#: What a serializer must be able to carry.
_PROBE: dict[str, Any] = {"z": [None, True, 1, -(2**63), 1.5, "é", ""], "a": {}, "m": []}


class Format(Protocol):
    """One serializer."""

    name: str
    #: The integer stored on the row.
    tag: int
    #: Whether the order of a dict's keys survives.
    ordered: bool
    #: Whether every value and character takes at least a byte, so that an oversize can be told before dumping.
    exact: bool

    def dump(self, tree: Tree) -> bytes:
        """The bytes of a tree."""

    def load(self, data: bytes) -> Tree:
        """The tree of bytes.

        :raises Exception: of any kind when they are damaged.
        """


def _json_dumps() -> Callable[[Any], str]:
    """The compact JSON writer of the standard library, without the set-up that it repeats for every call."""
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    try:
        quote = json.encoder.encode_basestring
        write = make(None, encoder.default, quote, None, ":", ",", False, False, False)
        if "".join(write(_PROBE, 0)) != encoder.encode(_PROBE):
            return encoder.encode
    # The C writer is a detail of CPython: where it has changed its shape, the public one is as right.
    except Exception:
        return encoder.encode
    return lambda tree: "".join(write(tree, 0))


class _Json:
    name = "json"
    tag = VERSION * 16 + _FORMATS["json"]
    ordered = True
    exact = True

    _dumps = staticmethod(_json_dumps())
    #: What ``raw_decode`` calls; its own call costs half as much again.
    _scan = staticmethod(json.JSONDecoder().scan_once)  # type: ignore[attr-defined]

    def dump(self, tree: Tree) -> bytes:
        return self._dumps(tree).encode()

    def load(self, data: bytes) -> Tree:
        text = data.decode()
        tree: Tree
        try:
            tree, end = self._scan(text, 0)
        except StopIteration as error:
            raise ValueError(f"invalid JSON at character {error.value}") from None
        if end != len(text):
            raise ValueError(f"{len(text) - end} characters after its end")
        return tree


class _Kombu:
    """A serializer of kombu's registry."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.custom = name not in _FORMATS
        self.tag = VERSION * 16 + _FORMATS.get(name, _CUSTOM)
        self.exact = name == "msgpack"
        self.ordered = True
        self._prefix = b""
        if self.custom:
            encoded = name.encode()
            self._prefix = bytes([len(encoded)]) + encoded
        self._content_type: str = registry.name_to_type[name]
        self._encoding = "utf-8"
        self.probe()

    def probe(self) -> None:
        """Carry a small tree both ways, and learn how the serializer behaves.

        :raises Exception: of any kind when it cannot.
        """
        self._content_type, self._encoding, _ = dumps(_PROBE, serializer=self.name)
        copy: Any = self.load(self.dump(_PROBE))
        if type(copy) is not dict or copy != _PROBE:
            raise ValueError("it does not return what it was given")
        self.ordered = list(copy) == list(_PROBE)

    def dump(self, tree: Tree) -> bytes:
        data: Any = dumps(tree, serializer=self.name)[2]
        return self._prefix + (data.encode() if isinstance(data, str) else bytes(data))

    def load(self, data: bytes) -> Tree:
        body = data[len(self._prefix) :]
        if not body:
            # kombu would give the nothing back as it is.
            raise ValueError("no data")
        # accept= lifts the ban that a worker's accept_content lays on messages; the journal is not a message.
        tree: Tree = loads(body, self._content_type, self._encoding, accept={self._content_type})
        check_tree(tree)
        return tree


class _Yaml(_Kombu):
    """YAML without references, by which a few bytes could stand for gigabytes."""

    def __init__(self) -> None:
        yaml = importlib.import_module("yaml")

        class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
            def ignore_aliases(self, data: Any) -> bool:
                return True

        self._yaml, self._dumper = yaml, Dumper
        super().__init__("yaml")

    def dump(self, tree: Tree) -> bytes:
        data: bytes = self._yaml.dump(tree, Dumper=self._dumper, encoding="utf-8", allow_unicode=True)
        return data

    def load(self, data: bytes) -> Tree:
        text = data.decode()
        if not text:
            raise ValueError("no data")
        self._check_events(text)
        tree: Tree = self._yaml.safe_load(text)
        check_tree(tree)
        return tree

    def _check_events(self, text: str) -> None:
        yaml = self._yaml
        depth = 0
        # They are parsed one by one: what is refused is not read further. The time of PyYAML grows with the square
        # of the depth.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has references, which this library does not write")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _DEEPEST:
                    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1


_JSON = _Json()
JSON_TAG = _JSON.tag


@functools.lru_cache(maxsize=64)
def _kombu(name: str, content_type: str) -> _Kombu:
    return _Kombu(name)


@functools.cache
def _yaml() -> _Yaml:
    return _Yaml()


def _named(name: str) -> Format:
    if name == "json":
        return _JSON
    if name == "yaml":
        return _yaml()
    return _kombu(name, registry.name_to_type[name])


def _usable(name: str) -> bool:
    try:
        _named(name)
    except Exception:
        return False
    return True


def format_of_setting(name: str, setting: str = "durable_serializer") -> Format:
    """The serializer that a setting names.

    :raises ConfigurationError: when kombu does not know it, or it cannot carry a tree.
    """
    try:
        return _named(name)
    except Exception as error:
        known = name in registry.name_to_type
        why = f"does not work: {type(error).__name__}: {error}" if known else "is not registered with kombu"
        usable = ", ".join(sorted(other for other in registry.name_to_type if _usable(other)))
        raise ConfigurationError(
            f"{setting} = {name!r} {why}. Use one of: {usable}; or register it with kombu.serialization.register() "
            "before the application starts.",
            setting=setting,
        ) from error


def format_of_row(tag: int, data: bytes, where: str, configured: Format, accepted: Collection[str]) -> Format:
    """The serializer that wrote a row.

    :param configured: that of ``durable_serializer``.
    :param accepted: names of others that may be read (``durable_accept_serializers``). JSON always may.
    :raises PayloadError: when this program cannot or must not read it.
    """
    if tag == configured.tag and tag & 15 != _CUSTOM:
        return configured
    version, number = tag >> 4, tag & 15
    if version != VERSION:
        raise PayloadError(
            f"{where} was written in form {version} of the codec, and this version of celery_durable reads form "
            f"{VERSION}; run the version that wrote it, or a newer one.",
            where=where,
        )
    if number == _CUSTOM:
        name = data[1 : 1 + data[0]].decode("utf-8", "replace") if data else ""
    else:
        name = next((known for known, code in _FORMATS.items() if code == number), "")
    if name == configured.name:
        return configured
    if name != "json" and name not in accepted:
        shown = preview(name, 80) if name else f"number {number}"
        risk = ", which can run code when it is read" if _is_pickle(name) else ""
        raise PayloadError(
            f"{where} was stored with the serializer {shown}{risk}; this application writes {configured.name!r} and "
            "does not read it. If it was written by this application, and the database is trusted, name it in "
            "durable_accept_serializers until such executions have ended.",
            where=where,
        )
    try:
        return _named(name)
    except Exception as error:
        raise PayloadError(
            f"{where} was stored with the serializer {name!r}, which cannot be used here ({error}); install it, or "
            "register it with kombu.serialization.register() before the worker starts.",
            where=where,
        ) from error


def _is_pickle(name: str) -> bool:
    return name == "pickle" or registry.name_to_type.get(name) == _PICKLE_TYPE
