"""Classes as references: ``module:qualname``.

A reference in the journal names a class, never a callable to be called. It is resolved by importing the module,
and the one who resolves it checks that it is the kind of class it claims to be.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .refusal import Unencodable, type_name

__all__ = ["LookupFailed", "dotted_name", "find", "reference", "slot_names"]


class LookupFailed(Exception):
    """A reference leads nowhere in this program; the text says why."""


def reference(cls: type) -> str:
    """The reference to a class, after making sure that it leads back to it.

    :raises Unencodable: when the class could not be found again: local, generated, or shadowed by another.
    """
    name = type_name(cls)
    if "<locals>" in cls.__qualname__:
        raise Unencodable(
            f"a {name!r}, whose class is local to a function and cannot be imported at replay. Move the class to "
            "the top level of its module.",
            name,
        )
    ref = f"{cls.__module__}:{cls.__qualname__}"
    try:
        found = find(ref)
    except LookupFailed as error:
        raise Unencodable(
            f"a {name!r}, whose class cannot be imported under its own name ({error}). Give it a name at the top "
            "level of its module; for a parametrised generic class, make a subclass of it.",
            name,
        ) from error
    if found is not cls:
        raise Unencodable(
            f"a {name!r}, but importing that name gives something else. Was the class redefined or decorated? Give "
            "the two different names.",
            name,
        )
    return ref


def find(ref: str) -> Any:
    """What a reference leads to; of any type.

    :raises LookupFailed: when the module cannot be imported or has no such name.
    """
    module_name, _, qualname = ref.partition(":")
    module: Any = sys.modules.get(module_name)
    if module is None:
        try:
            module = importlib.import_module(module_name)
        # An application's module may raise anything while it is imported.
        except Exception as error:
            raise LookupFailed(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    found = module
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            hint = " (it was recorded by a program that ran as a script)" if module_name == "__main__" else ""
            raise LookupFailed(f"module {module_name!r} has no {qualname!r}{hint}") from None
    return found


def dotted_name(ref: str) -> str:
    """A reference as people write it: ``module.qualname``."""
    return ref.replace(":", ".")


def slot_names(cls: type) -> tuple[str, ...]:
    """The names of a class's ``__slots__``, with those of its bases, as attributes are looked up."""
    names: list[str] = []
    for base in reversed(cls.__mro__):
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                stripped = base.__name__.lstrip("_")
                name = f"_{stripped}{name}" if stripped else name
            names.append(name)
    return tuple(dict.fromkeys(names))
