"""Whether the values of a pydantic model fit the fields of its class, which a deploy may have changed since.

Only types and constraints are checked. The model's validators do not run: they ran when the value was made, and may
have turned their input into something that they would refuse. What already does not fit when it is recorded (a
validator or ``model_construct()`` put it there) is noted with the value, and not checked when it is read.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from .refusal import Undecodable

__all__ = ["fitted", "misfits"]


class _Fit(NamedTuple):
    """What is asked about a class's fields."""

    #: The fields that can be asked about, each with what asks.
    single: dict[str, Any]
    #: Asks about all of those at once, which is much quicker.
    together: Any


@functools.lru_cache(maxsize=1024)
def _fit(cls: Any) -> _Fit:
    single = {}
    types = []
    for name, field in cls.model_fields.items():
        kind = field.annotation
        for asked in field.metadata:
            # Constraints are plain data; what holds a function is a validator, or a serializer.
            if not callable(getattr(asked, "func", None)):
                kind = Annotated[kind, asked]
        try:
            single[name] = _adapter((kind,))
        except Exception:
            continue  # a type that pydantic takes for a field, and not by itself
        types.append(kind)
    return _Fit(single, _adapter(tuple(types)) if types else None)


def _adapter(types: tuple[Any, ...]) -> Any:
    # A tuple around them, for a model by itself takes no configuration.
    made = importlib.import_module("pydantic").TypeAdapter(
        tuple.__class_getitem__(types), config={"arbitrary_types_allowed": True}
    )
    return made.validator


def misfits(cls: Any, values: Mapping[str, Any]) -> list[str]:
    """Names of the fields whose values are not what their class says."""
    fit = _fit(cls)
    if fit.together is None or _all_fit(fit, values):
        return []
    return [name for name, asks in fit.single.items() if not _fits(asks, values[name])]


def fitted(cls: Any, values: Mapping[str, Any], ignore: frozenset[str], where: str) -> dict[str, Any]:
    """The values as they fit the class: as they are, or as pydantic converts them for the type that a field has now.

    :param values: of some of its fields.
    :param ignore: fields that are not asked about.
    :param where: names the class.
    :raises Undecodable: when one does not fit at all.
    """
    fit = _fit(cls)
    found = dict(values)
    if not ignore and len(values) >= len(fit.single) and _all_fit(fit, values):
        return found
    for name, value in values.items():
        asks = fit.single.get(name)
        if asks is None or name in ignore or _fits(asks, value):
            continue
        try:
            found[name] = asks.validate_python((value,))[0]
        except Exception as error:
            raise Undecodable(
                f"the field {name!r} of {where} no longer accepts the recorded value, a {type(value).__qualname__}; "
                "keep its old type, or let it accept both"
            ) from error
    return found


def _all_fit(fit: _Fit, values: Mapping[str, Any]) -> bool:
    return fit.together is None or _fits(fit.together, *(values[name] for name in fit.single))


def _fits(asks: Any, *values: Any) -> bool:
    try:
        asks.validate_python(values, strict=True)
    # A type's own code may raise anything.
    except Exception:
        return False
    return True
