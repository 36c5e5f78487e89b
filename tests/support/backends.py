"""Which databases and brokers a test run uses, where they are, and how often each was used.

A *kind* is a word such as ``postgresql``; a *backend* is a kind that was found. Kinds are looked for when the first
test asks for them, in this order: the address in the environment, a server at its usual place on this machine,
a server of our own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Backend", "Missing", "Registry", "Usage", "address", "in_ci", "selected", "summary"]

H_co = TypeVar("H_co", covariant=True)
H = TypeVar("H")


class Missing(Exception):
    """A kind that is not to be had on this machine; the message says what was tried."""


class Backend(Protocol[H_co]):
    """A database or broker that was found, able to give every test one of its own."""

    #: Version of the server, or of the library that takes its place.
    version: str
    #: Where it is, for the report.
    where: str

    def lend(self, folder: Path) -> AbstractContextManager[H_co]:
        """A fresh, empty one while a test lasts; ``folder`` is the test's own."""

    def close(self) -> None:
        """Stop what was started."""


@dataclass
class Usage:
    """What one kind was to a test run."""

    #: Empty where it was not found.
    version: str = ""
    #: Its place, or why it is missing.
    where: str = ""
    tests: int = 0
    skipped: int = 0


def in_ci() -> bool:
    """Whether what is missing fails the run."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def address(kind: str) -> str | None:
    """What ``DURABLE_TEST_<KIND>_URL`` says: an address, ``bundled``, or nothing.

    ``bundled`` asks for a server of our own even where the machine runs one.

    :raises Missing: when it says ``none``.
    """
    variable = f"DURABLE_TEST_{kind.upper()}_URL"
    value = os.environ.get(variable) or None
    if value == "none":
        raise Missing(f"{variable} says none")
    return value


def selected(variable: str, known: Iterable[str]) -> tuple[str, ...]:
    """The kinds that a variable such as ``DURABLE_TEST_DATABASES`` allows, all of them when it is not set.

    :raises ValueError: when it names something unknown.
    """
    known = tuple(known)
    words = tuple(word.strip() for word in os.environ.get(variable, "").split(",") if word.strip())
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"{variable}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return words or known


@dataclass
class Registry(Generic[H]):
    """The backends of one sort (databases, or brokers) in this process, found once and counted."""

    finders: dict[str, Callable[[], Backend[H]]]
    usage: dict[str, Usage] = field(default_factory=dict)
    _found: dict[str, Backend[H]] = field(default_factory=dict)
    _missing: dict[str, Missing] = field(default_factory=dict)

    def use(self, kind: str) -> Backend[H]:
        """The backend, for one more test.

        :raises Missing: and counts the test as skipped.
        """
        usage = self.usage.setdefault(kind, Usage())
        if kind not in self._found and kind not in self._missing:
            try:
                self._found[kind] = self.finders[kind]()
            except Missing as missing:
                self._missing[kind] = missing
        if kind in self._missing:
            usage.where = str(self._missing[kind])
            usage.skipped += 1
            raise self._missing[kind]
        backend = self._found[kind]
        usage.version, usage.where = backend.version, backend.where
        usage.tests += 1
        return backend

    def close(self) -> None:
        """Stop every server that was started for this run."""
        for backend in self._found.values():
            backend.close()
        self._found.clear()


def merge(into: dict[str, Usage], more: dict[str, dict[str, Any]]) -> None:
    """Add what another test process counted."""
    for kind, numbers in more.items():
        usage = into.setdefault(kind, Usage())
        other = Usage(**numbers)
        usage.version = usage.version or other.version
        usage.where = usage.where or other.where
        usage.tests += other.tests
        usage.skipped += other.skipped


def missing(usage: dict[str, Usage]) -> list[str]:
    """The kinds that tests asked for in vain."""
    return [kind for kind, used in usage.items() if used.skipped]


def summary(usage: dict[str, Usage]) -> list[str]:
    """The table at the end of a run, line by line."""
    libraries = ", ".join(f"{name} {version(name.lower())}" for name in ("Celery", "kombu", "SQLAlchemy"))
    lines = [f"Backends (Python {platform.python_version()}, {libraries}):"]
    for kind, used in usage.items():
        if used.version:
            lines.append(f"  {kind:<11} {used.version:<17} {used.where:<38} {_tests(used.tests)}")
        else:
            lines.append(f"  {kind:<11} MISSING: {used.where} - {_tests(used.skipped)} skipped")
    return lines


def _tests(number: int) -> str:
    return f"{number} test" if number == 1 else f"{number} tests"
