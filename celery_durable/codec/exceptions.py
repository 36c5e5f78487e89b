"""Exceptions as data.

An exception that a body handled has to be raised again at replay, so it is recorded: the name of its class, its
arguments, its attributes, its notes, its text, where it came from and what caused it. It is never pickled, and
rebuilding it runs no code of the application: the class is looked up, an empty instance is made by the nearest
*built-in* base, and the recorded parts are put into it. If the class is gone, an
:class:`~celery_durable.errors.ErrorPlaceholder` takes its place.

Recording an error must not fail, or our error would hide the one that matters. What cannot be stored is replaced by its
``repr`` (arguments) or left out (attributes), and an oversize record is thinned out by ``level``.
"""

from __future__ import annotations

import traceback
from typing import Any, Final

from celery_durable.errors import ErrorPlaceholder

from .classes import LookupFailed, dotted_name, find
from .preview import preview
from .tree import DECODERS, TAG, Tree, TreeEncoder, decode_tree, node

__all__ = ["LEVELS", "TRACEBACK_ATTRIBUTE", "decode_exception", "encode_exception", "is_error", "text_of"]

#: Attribute of a rebuilt exception that holds the text of the traceback it was recorded with.
TRACEBACK_ATTRIBUTE: Final = "durable_traceback"

#: How far a record can be thinned out: 0 everything, 1 no traceback and no cause, 2 no attributes either and
#: arguments only as short texts, 3 nothing but the class and a line of text.
LEVELS: Final = (0, 1, 2, 3)

_TRACEBACK_CHARS = 4096
_TEXT_CHARS = 2048
_REPR_CHARS = 200
#: Errors inside errors (causes, exception groups, errors as arguments) are followed this far.
_MAX_NESTING = 4
_BUDGET = 1_048_576
#: State that C-level exceptions keep outside of ``args`` and ``__dict__``.
_HIDDEN: Final[tuple[tuple[type[BaseException], tuple[str, ...]], ...]] = (
    (ImportError, ("name", "path")),
    (NameError, ("name",)),
    (AttributeError, ("name",)),
)


def encode_exception(exc: BaseException, *, level: int = 0, budget: int = _BUDGET, ordered: bool = True) -> Tree:
    """The tree of an exception. Never raises.

    :param level: how much to leave out; one of :data:`LEVELS`.
    :param budget: how much one argument or attribute may take, counted as in :class:`TreeEncoder`; what takes more is
        treated as what cannot be stored.
    :param ordered: as in :class:`TreeEncoder`.
    """
    return _Recorder(level, budget, ordered).record(exc, 0)


def decode_exception(tree: Any) -> BaseException:
    """The exception of a tree: of its own class where that is loaded and can be made, else a placeholder.

    :raises Exception: of any kind when the tree is malformed, or is no record of an exception.
    """
    if not is_error(tree):
        raise TypeError(f"it holds a {type(tree).__name__} instead of an error")
    return _exception(tree[TAG], 0)


class _Recorder:
    def __init__(self, level: int, budget: int, ordered: bool) -> None:
        self.level = level
        self.budget = budget
        self.ordered = ordered

    def record(self, exc: BaseException, nesting: int) -> Tree:
        cls = type(exc)
        record: dict[str, Tree] = {
            "class": _plain(f"{cls.__module__}:{cls.__qualname__}", _TEXT_CHARS),
            "text": _plain(text_of(exc), _TEXT_CHARS if self.level < 2 else _REPR_CHARS),
        }
        if self.level >= 3:
            return node("error", {**record, "args": [record["text"]]})
        record["args"] = [self.part(part, nesting) for part in _args(exc)]
        notes = getattr(exc, "__notes__", None)
        if isinstance(notes, list) and notes:
            record["notes"] = [self.part(part, nesting) for part in notes]
        if self.level < 2:
            self.attributes(exc, nesting, record)
        if self.level < 1:
            trace = _traceback(exc)
            if trace:
                record["traceback"] = _plain(trace, _TRACEBACK_CHARS)
            cause = exc.__cause__
            if cause is not None and nesting < 1:
                record["cause"] = self.record(cause, nesting + 1)
        return node("error", record)

    def attributes(self, exc: BaseException, nesting: int, record: dict[str, Tree]) -> None:
        """Record what can be stored of the instance's own attributes, and the names of what cannot."""
        kept: dict[str, Tree] = {}
        lost: list[Tree] = []
        for name, part in _attributes(exc).items():
            tree = self.stored(part, nesting)
            plain_name = _plain(name, _REPR_CHARS)
            if tree is _NOT_STORABLE or plain_name != name:
                lost.append(plain_name)
            else:
                kept[name] = tree
        if kept:
            record["attributes"] = kept
        if lost:
            record["lost"] = lost

    def part(self, value: Any, nesting: int) -> Tree:
        """The tree of an argument; a marked text where there is none."""
        if self.level >= 2 and not (value is None or type(value) in (bool, int, float)):
            text = value if type(value) is str else preview(value, _REPR_CHARS)
            return _plain(text, _REPR_CHARS)
        tree = self.stored(value, nesting)
        return node("repr", _plain(preview(value, _REPR_CHARS), _REPR_CHARS)) if tree is _NOT_STORABLE else tree

    def stored(self, value: Any, nesting: int) -> Any:
        """The tree of a value, or ``_NOT_STORABLE``."""
        if nesting < _MAX_NESTING:
            if isinstance(value, BaseException):
                return self.record(value, nesting + 1)
            if type(value) in (list, tuple) and value and all(isinstance(v, BaseException) for v in value):
                trees = [self.record(v, nesting + 1) for v in value]
                return trees if type(value) is list else node("tuple", trees)
        try:
            encoder = TreeEncoder(self.budget, self.ordered)
            tree = encoder.encode(value)
            encoder.spend(0)
        # Besides our own refusals: properties and hashes of foreign classes may raise anything.
        except Exception:
            return _NOT_STORABLE
        return tree


_NOT_STORABLE: Any = object()


def _args(exc: BaseException) -> tuple[Any, ...]:
    """The arguments that make the exception again. OSError takes the file names out of its ``args``."""
    if isinstance(exc, OSError) and type(exc).__reduce__ is OSError.__reduce__:
        reduced = OSError.__reduce__(exc)
        if isinstance(reduced[1], tuple):
            return reduced[1]
    return exc.args


def _attributes(exc: BaseException) -> dict[str, Any]:
    found = {
        name: part
        for name, part in exc.__dict__.items()
        if name != TRACEBACK_ATTRIBUTE and not (name.startswith("__") and name.endswith("__"))
    }
    for base, names in _HIDDEN:
        if isinstance(exc, base):
            found.update((name, getattr(exc, name)) for name in names if getattr(exc, name, None) is not None)
    return found


def text_of(exc: BaseException) -> str:
    """Its message, whatever its class makes of ``str()``."""
    try:
        return str(exc)
    # A broken __str__ is no reason to lose the error.
    except Exception:
        return f"<{type(exc).__qualname__}: str() failed>"


def _traceback(exc: BaseException) -> str:
    if exc.__traceback__ is None:
        recorded = exc.__dict__.get(TRACEBACK_ATTRIBUTE)
        return recorded if isinstance(recorded, str) else ""
    try:
        # From the end: the frames nearest to the error tell the most.
        text = "".join(traceback.format_tb(exc.__traceback__, limit=-20))
    except Exception:
        return ""
    return text[-_TRACEBACK_CHARS:]


def _plain(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters, with what is not Unicode spelled out."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


# Rebuilding ------------------------------------------------------------------------------------------------------


def _exception(tagged: list[Any], nesting: int) -> BaseException:
    if nesting > _MAX_NESTING:
        raise ValueError("errors are nested too deep in it")
    _, record = tagged
    ref, text = _text_of(record["class"]), _text_of(record["text"])
    args = tuple(_part(part, nesting) for part in _list_of(record["args"]))
    attributes = {name: _part(part, nesting) for name, part in record.get("attributes", {}).items()}
    try:
        exc = _make(ref, args)
        exc.__dict__.update({name: part for name, part in attributes.items() if not _is_hidden(exc, name)})
        for name, part in attributes.items():
            if _is_hidden(exc, name):
                setattr(exc, name, part)
    except _CannotMake as error:
        original = dotted_name(ref)
        exc = ErrorPlaceholder(
            f"{original}: {text} (recorded; the class cannot be rebuilt here: {error})",
            original=original,
            original_args=args,
            original_text=text,
        )
    if "notes" in record:
        exc.__dict__["__notes__"] = [_part(part, nesting) for part in _list_of(record["notes"])]
    if "traceback" in record:
        exc.__dict__[TRACEBACK_ATTRIBUTE] = _text_of(record["traceback"])
    if "cause" in record:
        cause = record["cause"]
        if not is_error(cause):
            raise TypeError("its cause is not an error")
        exc.__cause__ = _exception(cause[TAG], nesting + 1)
    return exc


def is_error(tree: Any) -> bool:
    """Whether a tree is the record of an exception."""
    return type(tree) is dict and len(tree) == 1 and TAG in tree and tree[TAG][0] == "error"


def _part(tree: Any, nesting: int) -> Any:
    """An argument, attribute or note: only there can an error stand among values, or the text of what had no form."""
    if type(tree) is list and tree and all(map(is_error, tree)):
        return [_exception(error[TAG], nesting + 1) for error in tree]
    if type(tree) is dict and TAG in tree:
        tag, *content = tree[TAG]
        if is_error(tree):
            return _exception(tree[TAG], nesting + 1)
        if tag == "repr":
            return _text_of(*content)
        if tag == "tuple" and content[0] and all(map(is_error, content[0])):
            return tuple(_exception(error[TAG], nesting + 1) for error in content[0])
    return decode_tree(tree)


def _text_of(part: Any) -> str:
    if type(part) is not str:
        raise TypeError("one of its texts is not a string")
    return part


def _list_of(part: Any) -> list[Any]:
    if type(part) is not list:
        raise TypeError("one of its lists is not a list")
    return part


class _CannotMake(Exception):
    """Why a class gives no instance."""


def _make(ref: str, args: tuple[Any, ...]) -> BaseException:
    """An instance of an exception class as its nearest built-in base makes it."""
    try:
        cls = find(ref)
    except LookupFailed as error:
        raise _CannotMake(str(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise _CannotMake("it is not an exception class")
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    try:
        # The constructors of built-in exceptions are C code that only stores its arguments. The application's
        # own __init__ is not called: its signature need not match args, and it ran when the error was made.
        exc: BaseException = base.__new__(cls, *args)
        base.__init__(exc, *args)  # type: ignore[misc]
    except Exception as error:
        raise _CannotMake(f"{type(error).__name__}: {error}") from error
    if type(exc) is not cls:
        raise _CannotMake(f"it gives a {type(exc).__qualname__}")
    return exc


def _is_hidden(exc: BaseException, name: str) -> bool:
    return any(isinstance(exc, base) and name in names for base, names in _HIDDEN)


def _no_value(tagged: list[Any]) -> Any:
    raise TypeError("it holds an error instead of a value")


DECODERS["error"] = DECODERS["repr"] = _no_value
