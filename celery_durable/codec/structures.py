"""Enum members, named tuples and dataclasses.

They are stored by name - of the class, of the member, of each field - and rebuilt without running ``__init__`` or
``__post_init__``: those ran once, when the value was made, and a replay repeats nothing. A field that was added since
gets its default. A field that was removed, or that has no default, is an error rather than a guess.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .classes import LookupFailed, dotted_name, find, reference, slot_names
from .preview import preview
from .refusal import Undecodable, Unencodable, type_name
from .tree import CLASS_ENCODERS, DECODERS, Encode, Tree, TreeEncoder, decode_tree, node

__all__ = ["check_fields", "is_namedtuple", "resolve"]

#: Instance attributes that the typing module adds and nobody misses.
_IGNORED_ATTRIBUTES = frozenset({"__orig_class__"})
_MISSING = object()


def is_namedtuple(cls: Any) -> bool:
    """Whether a class was made by ``typing.NamedTuple`` or ``collections.namedtuple``."""
    return isinstance(cls, type) and issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def resolve(ref: str) -> Any:
    """What a class reference leads to.

    :raises Undecodable: when it leads nowhere.
    """
    try:
        return find(ref)
    except LookupFailed as error:
        raise Undecodable(
            f"its class {dotted_name(ref)} cannot be found: {error}. Where it was moved or removed, restore it under "
            "that name, for example as an alias of its new place"
        ) from error


def check_fields(ref: str, stored: Iterable[str], known: Iterable[str]) -> None:
    """Make sure that everything stored has a place in the class of today.

    :raises Undecodable: naming the fields that have none.
    """
    extra = sorted(set(stored).difference(known))
    if extra:
        shown = ", ".join(preview(name, 80) for name in extra[:10])
        raise Undecodable(f"{dotted_name(ref)} has no field {shown} any more; keep it in the class")


def missing_field(ref: str, name: str) -> Undecodable:
    """The error for a field that the class of today wants and the record lacks."""
    return Undecodable(f"{dotted_name(ref)} has a new field {name!r} without a default; give it one")


# Enum ------------------------------------------------------------------------------------------------------------


def _enum_encoder(cls: type) -> Encode | None:
    if not isinstance(cls, enum.EnumMeta):
        return None
    ref = reference(cls)
    members: Mapping[str, Any] = cls.__members__

    def encode(value: Any, encoder: TreeEncoder, depth: int) -> Tree:
        if value._name_ in members:
            return node("enum", ref, encoder.encode(value._name_))
        # A combination of flags has no name of its own.
        return node("flag", ref, encoder.encode(value._value_))

    return encode


def _decode_enum(tagged: list[Any]) -> Any:
    tag, ref, tree = tagged
    cls = resolve(ref)
    if not isinstance(cls, enum.EnumMeta):
        raise Undecodable(f"{dotted_name(ref)} is no longer an Enum")
    what: Any = decode_tree(tree)
    if type(what) is not (int if tag == "flag" else str):
        raise TypeError("its record of the member has the wrong type")
    if tag == "flag":
        if not issubclass(cls, enum.Flag):
            raise Undecodable(f"{dotted_name(ref)} is no longer a Flag")
        try:
            return cls(what)
        except ValueError as error:
            raise Undecodable(f"{dotted_name(ref)} has no flags for {preview(what, 80)} any more; keep them") from error
    try:
        members: Mapping[Any, Any] = cls.__members__
        return members[what]
    except KeyError:
        raise Undecodable(
            f"{dotted_name(ref)} has no member {preview(what, 80)} any more; keep it in the class"
        ) from None


# Named tuples ----------------------------------------------------------------------------------------------------


def _namedtuple_encoder(cls: type) -> Encode | None:
    if not is_namedtuple(cls):
        return None
    ref, names = reference(cls), cls._fields  # type: ignore[attr-defined]

    def encode(value: Any, encoder: TreeEncoder, depth: int) -> Tree:
        if len(value) != len(names) or getattr(value, "__dict__", None):
            raise Unencodable(f"a {type_name(cls)!r} that holds more than its fields. Use a dataclass.", type_name(cls))
        return node("namedtuple", ref, encoder.fields(dict(zip(names, value, strict=True)), depth, value))

    return encode


def _decode_namedtuple(tagged: list[Any]) -> Any:
    _, ref, trees = tagged
    cls = resolve(ref)
    if not is_namedtuple(cls):
        raise Undecodable(f"{dotted_name(ref)} is no longer a named tuple")
    check_fields(ref, trees, cls._fields)
    values = []
    for name in cls._fields:
        if name in trees:
            values.append(decode_tree(trees[name]))
        elif name in cls._field_defaults:
            values.append(cls._field_defaults[name])
        else:
            raise missing_field(ref, name)
    return tuple.__new__(cls, values)


# Dataclasses -----------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """What is known of a dataclass, by class."""

    fields: tuple[dataclasses.Field[Any], ...]
    names: frozenset[str]
    #: Slots that are not fields: state of bases that are not dataclasses.
    other_slots: tuple[str, ...]
    #: ``functools.cached_property`` stores into the instance; it is computed again where it is asked for.
    caches: frozenset[str]


@functools.lru_cache(maxsize=1024)
def _shape(cls: Any) -> _Shape:
    fields = dataclasses.fields(cls)
    names = frozenset(field.name for field in fields)
    caches = frozenset(
        name
        for base in cls.__mro__
        for name, attribute in vars(base).items()
        if isinstance(attribute, functools.cached_property)
    )
    return _Shape(fields, names, tuple(name for name in slot_names(cls) if name not in names), caches)


def _is_dataclass(cls: Any) -> bool:
    return isinstance(cls, type) and "__dataclass_fields__" in cls.__dict__


def _dataclass_encoder(cls: type) -> Encode | None:
    if not dataclasses.is_dataclass(cls):
        return None
    name = type_name(cls)
    if not _is_dataclass(cls):
        raise Unencodable(
            f"a {name!r}, a subclass of a dataclass without the decorator. Decorate it with @dataclass as well.", name
        )
    for base in cls.__mro__[:-1]:
        if base.__module__ == "builtins":
            raise Unencodable(
                f"a {name!r}, a dataclass on top of {base.__qualname__}, whose own content is not in its fields. "
                "Derive it from object and make that content a field.",
                name,
            )
    ref, shape = reference(cls), _shape(cls)

    def encode(value: Any, encoder: TreeEncoder, depth: int) -> Tree:
        present: dict[str, Any] = {}
        unset: list[Tree] = []
        for field in shape.fields:
            part = getattr(value, field.name, _MISSING)
            if part is _MISSING:
                unset.append(field.name)
            else:
                present[field.name] = part
        other = {
            key: part
            for key, part in getattr(value, "__dict__", {}).items()
            if key not in shape.names and key not in shape.caches and key not in _IGNORED_ATTRIBUTES
        }
        for slot in shape.other_slots:
            part = getattr(value, slot, _MISSING)
            if part is not _MISSING:
                other[slot] = part
        trees = encoder.fields(present, depth, value)
        if not unset and not other:
            return node("dataclass", ref, trees)
        return node("dataclass", ref, trees, unset, encoder.fields(other, depth, value))

    return encode


def _decode_dataclass(tagged: list[Any]) -> Any:
    _, ref, trees, *rest = tagged
    cls = resolve(ref)
    if not _is_dataclass(cls):
        raise Undecodable(f"{dotted_name(ref)} is no longer a dataclass")
    shape = _shape(cls)
    unset, other = rest if rest else ((), {})
    if len(trees) != len(shape.names) or not shape.names.issuperset(trees):
        check_fields(ref, trees, shape.names)
    value = object.__new__(cls)
    for field in shape.fields:
        name = field.name
        if name in trees:
            part = decode_tree(trees[name])
        elif name in unset:
            continue
        elif field.default is not dataclasses.MISSING:
            part = field.default
        elif field.default_factory is not dataclasses.MISSING:
            part = field.default_factory()
        else:
            raise missing_field(ref, name)
        object.__setattr__(value, name, part)
    for name, tree in other.items():
        if name in shape.other_slots:
            object.__setattr__(value, name, decode_tree(tree))
        else:
            # Where it came from. As an attribute, it could be one that a class computes, or the class itself.
            value.__dict__[name] = decode_tree(tree)
    return value


CLASS_ENCODERS.extend([_enum_encoder, _namedtuple_encoder, _dataclass_encoder])
DECODERS.update(
    {
        "enum": _decode_enum,
        "flag": _decode_enum,
        "namedtuple": _decode_namedtuple,
        "dataclass": _decode_dataclass,
    }
)
