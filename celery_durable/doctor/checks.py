"""What a check is, and what it finds."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery_durable.messaging.tasks import is_durable
from celery_durable.settings import Settings, load
from celery_durable.store import Database
from celery_durable.store.pooler import Pooler
from celery_durable.store.urls import parse_url

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Check", "Finding", "Patient", "Remark", "Severity", "check", "checks", "error", "fine", "warning"]


class Severity(str, enum.Enum):
    """How bad it is."""

    OK = "ok"
    #: It works, but something may be lost, late or in the way.
    WARNING = "warning"
    #: It does not work, or will not for long.
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    #: Stable; ``CD9..``.
    code: str
    #: What was looked at.
    topic: str
    severity: Severity
    text: str
    #: What to do.
    cure: str = ""
    #: The application knows (``durable_silence``), and has accepted it.
    silenced: bool = False
    #: Nothing more can be found out.
    fatal: bool = False


class Remark(NamedTuple):
    """A finding, as its check says it."""

    severity: Severity
    text: str
    cure: str = ""
    fatal: bool = False


def fine(text: str) -> Remark:
    """All is well."""
    return Remark(Severity.OK, text)


def warning(text: str, cure: str) -> Remark:
    """It works, but."""
    return Remark(Severity.WARNING, text, cure)


def error(text: str, cure: str, *, fatal: bool = False) -> Remark:
    """It does not work."""
    return Remark(Severity.ERROR, text, cure, fatal)


class Patient:
    """What checks look at.

    :raises ConfigurationError: when a ``durable_*`` setting is wrong.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.conf: Any = app.conf
        self.settings: Settings = load(app)
        self.url = parse_url(self.settings.database_url)
        self.pooler = Pooler(self.settings.pooler)

    @functools.cached_property
    def database(self) -> Database:
        """The journal's, with connections of its own."""
        return Database(self.settings.database_url, timeout=self.settings.ack_timeout, pooled=False, pooler=self.pooler)

    @functools.cached_property
    def tasks(self) -> list[Any]:
        """The durable tasks that this process knows."""
        return [task for name, task in sorted(self.app.tasks.items()) if is_durable(self.app, name)]

    @property
    def transport(self) -> str:
        """Of the broker, as its URL begins: redis, amqp, ..."""
        url = self.conf.get("broker_write_url") or self.conf.get("broker_url") or "amqp://"
        if isinstance(url, (list, tuple)):
            url = url[0] if url else "amqp://"
        return str(url).split("://", 1)[0].lower().split("+", 1)[0]


@dataclass(frozen=True)
class Check:
    """A check that can be called."""

    code: str
    topic: str
    look: Callable[[Patient], Iterator[Remark]]

    def __call__(self, patient: Patient) -> list[Finding]:
        """What it finds; a check that has nothing to say says that all is well."""
        try:
            remarks = list(self.look(patient)) or [fine("")]
        # A configuration that nobody thought of must neither stop the other checks nor a worker.
        except Exception as failure:
            text = " ".join(str(failure).split())
            remarks = [warning(f"this could not be checked: {type(failure).__name__}: {text}", "")]
        silenced = self.code in patient.settings.silence
        return [
            Finding(self.code, self.topic, r.severity, r.text, r.cure, silenced and not r.fatal, r.fatal)
            for r in remarks
        ]


_checks: Final[dict[str, Check]] = {}
_homes: Final[dict[str, str]] = {}


def check(code: str, topic: str) -> Callable[[Callable[[Patient], Iterator[Remark]]], Check]:
    """Make a function a check."""

    def register(look: Callable[[Patient], Iterator[Remark]]) -> Check:
        assert code not in _checks, f"two checks have the code {code}"
        _checks[code] = made = Check(code, topic, look)
        _homes[code] = look.__module__
        return made

    return register


def checks(module: ModuleType | None = None) -> list[Check]:
    """All checks, or those of a module, by their codes."""
    return [_checks[code] for code in sorted(_checks) if module is None or _homes[code] == module.__name__]
