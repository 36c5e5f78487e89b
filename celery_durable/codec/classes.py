"""Classes as references: ``module:qualname``.

A reference in the journal names a class, never a callable to be called. Whoever can write to the database can name any
class. So a reference is looked up only among what this program has loaded by itself, and nothing is imported, or run,
to follow one. The caller checks that it is the kind of class it claims to be.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterable
from typing import Any, Final

from celery_durable.errors import ConfigurationError

from .preview import one_line
from .refusal import Unencodable, type_name

__all__ = ["LookupFailed", "dotted_name", "find", "import_modules", "reference", "slot_names"]

#: Characters shown of a reference.
_SHOWN = 200
#: Classes of the library that journals may name by the module in which they once stood.
_FORMERLY: Final = {
    f"celery_durable.{module}:{name}": f"celery_durable:{name}"
    for module, names in {
        "effects": "Effect Guard Happened Intent OnAmbiguous",
        "handle": "ExecutionStatus StepInfo",
        "promise": "Selected",
        "retry": "Retry",
        "step": "StepRecord",
        "store.records": "State",
        "timeline": "StepOutcome",
    }.items()
    for name in names.split()
}


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
            f"a {name!r}, whose class cannot be found under its own name ({error}). Give it a name at the top level of "
            "its module; for a parametrised generic class, make a subclass of it.",
            name,
        ) from error
    if found is not cls:
        raise Unencodable(
            f"a {name!r}, but that name leads to something else. Was the class redefined or decorated? Give "
            "the two different names.",
            name,
        )
    return ref


def find(ref: str) -> Any:
    """What a reference leads to; of any type.

    :raises LookupFailed: when its module is not loaded in this process, or has no such name.
    """
    module_name, _, qualname = _FORMERLY.get(ref, ref).partition(":")
    module = sys.modules.get(module_name)
    if module is None:
        raise LookupFailed(
            f"module {one_line(module_name, _SHOWN)!r} is not loaded in this process, and the journal must not "
            "decide what is imported. Import it where the application starts, or name it in durable_modules"
        )
    found: Any = module
    for part in qualname.split("."):
        try:
            # Asked as an attribute, a module could import another one, and an object run anything.
            found = _names(found)[part]
        except KeyError:
            hint = " (it was recorded by a program that ran as a script)" if module_name == "__main__" else ""
            raise LookupFailed(f"module {module_name!r} has no {one_line(qualname, _SHOWN)!r}{hint}") from None
    return found


def _names(found: Any) -> Any:
    """The names in a module or a class."""
    if isinstance(found, type):
        return type.__getattribute__(found, "__dict__")
    return object.__getattribute__(found, "__dict__") if isinstance(found, types.ModuleType) else {}


def import_modules(names: Iterable[str]) -> None:
    """Import what ``durable_modules`` names.

    :raises ConfigurationError: when one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        # A module may raise anything while it is imported; some end the program.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"durable_modules: importing {name!r} failed: {type(error).__name__}: {error}. It must name modules "
                "that hold the classes of stored values.",
                setting="durable_modules",
            ) from error


def dotted_name(ref: str) -> str:
    """A reference as people write it: ``module.qualname``; one line, whatever stands in it."""
    return one_line(ref.replace(":", "."), _SHOWN)


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
