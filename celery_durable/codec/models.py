"""pydantic models (version 2), and its time zones, where the application uses pydantic.

Rebuilt part by part through the hook that pydantic itself keeps for pickling, so that no validator runs at
replay: a value that was valid when it was recorded is given back as it was. Whether it still fits the types of its
fields is asked (:mod:`.model_fields`): a deploy may have changed them. pydantic is never imported from here; where a
model exists, the application has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

from .classes import dotted_name, reference
from .model_fields import fitted, misfits
from .refusal import Undecodable, Unencodable, type_name
from .structures import check_fields, missing_field, resolve
from .tree import CLASS_ENCODERS, DECODERS, Encode, Tree, TreeEncoder, decode_tree, node

__all__ = ["is_model", "is_zone"]


def base_model() -> Any:
    """``pydantic.BaseModel`` of version 2, or ``None`` where nobody imported it."""
    module = sys.modules.get("pydantic.main")
    base = getattr(module, "BaseModel", None)
    return base if hasattr(base, "model_fields") else None


def is_model(cls: Any) -> bool:
    """Whether a class is a pydantic model."""
    base = base_model()
    return base is not None and isinstance(cls, type) and issubclass(cls, base)


def is_zone(cls: Any) -> bool:
    """Whether a class is that of the fixed offsets in the times that pydantic parses."""
    return cls.__name__ == "TzInfo" and str(cls.__module__).startswith("pydantic_core")


def _zone_encoder(cls: type) -> Encode | None:
    if not is_zone(cls):
        return None
    return lambda value, encoder, depth: node("pydantic zone", round(value.utcoffset(None).total_seconds()))


def _decode_zone(tagged: list[Any]) -> Any:
    core = sys.modules.get("pydantic_core")
    if core is None:
        raise Undecodable("it has a time zone of pydantic, which nothing has imported here; name it in durable_modules")
    return core.TzInfo(tagged[1])


def _model_encoder(cls: type) -> Encode | None:
    if not is_model(cls):
        return None
    name = type_name(cls)
    for base in cls.__mro__[:-1]:
        if base.__module__ == "builtins":
            raise Unencodable(f"a {name!r}, a model on top of {base.__qualname__}. Make that content a field.", name)
    ref = reference(cls)
    names = frozenset(cls.model_fields)  # type: ignore[attr-defined]
    get_state = base_model().__getstate__

    def encode(value: Any, encoder: TreeEncoder, depth: int) -> Tree:
        state = get_state(value)
        # The instance's __dict__ also holds cached computed fields; they are computed again where asked for.
        fields = {key: part for key, part in state["__dict__"].items() if key in names}
        if len(fields) < len(names):
            lacking = ", ".join(sorted(names.difference(fields)))
            raise Unencodable(f"a {name!r} without its field {lacking}. Give every field a value.", name)
        trees = encoder.fields(fields, depth, value)
        fields_set: list[Tree] = sorted(state["__pydantic_fields_set__"])
        rest: list[Tree] = [
            part if part is None else encoder.fields(part, depth, value)
            for part in (state["__pydantic_extra__"], state["__pydantic_private__"])
        ]
        odd = misfits(cls, fields)
        if odd:
            rest.append(encoder.encode(odd, depth))
        return node("model", ref, trees, fields_set, *(rest if any(part is not None for part in rest) else ()))

    return encode


def _decode_model(tagged: list[Any]) -> Any:
    _, ref, trees, fields_set, *rest = tagged
    cls = resolve(ref)
    if not is_model(cls):
        raise Undecodable(f"{dotted_name(ref)} is no longer a pydantic model")
    known = cls.model_fields
    check_fields(ref, trees, known)
    extra, private, odd = (*rest, None, None, None)[:3]
    recorded = {name: decode_tree(tree) for name, tree in trees.items()}
    recorded = fitted(cls, recorded, frozenset(odd or ()), dotted_name(ref))
    values = {}
    for name, field in known.items():
        if name in recorded:
            values[name] = recorded[name]
        elif field.is_required():
            raise missing_field(ref, name)
        else:
            values[name] = _default(field, values)
    extra, private = _decode_fields(extra), _decode_fields(private)
    if cls.__private_attributes__:
        defaults = {name: attribute.get_default() for name, attribute in cls.__private_attributes__.items()}
        undefined = sys.modules["pydantic_core"].PydanticUndefined
        private = {name: part for name, part in defaults.items() if part is not undefined} | (private or {})
    value = object.__new__(cls)
    base_model().__setstate__(
        value,
        {
            "__dict__": values,
            "__pydantic_extra__": extra,
            "__pydantic_fields_set__": set(fields_set),
            "__pydantic_private__": private,
        },
    )
    return value


def _default(field: Any, values: dict[str, Any]) -> Any:
    if getattr(field, "default_factory_takes_validated_data", False):
        return field.get_default(call_default_factory=True, validated_data=values)
    return field.get_default(call_default_factory=True)


def _decode_fields(trees: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if trees is None else {name: decode_tree(tree) for name, tree in trees.items()}


# Before the others: a pydantic model is asked for first because a class may be several things at once.
CLASS_ENCODERS.insert(0, _model_encoder)
DECODERS["model"] = _decode_model
CLASS_ENCODERS.append(_zone_encoder)
DECODERS["pydantic zone"] = _decode_zone
