"""``app.conf.durable_*`` as one checked, frozen object."""

from __future__ import annotations

import datetime as dt
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from celery import _state

from .codec.formats import format_of_setting
from .errors import ConfigurationError
from .store import django_place
from .store.pooler import POOLERS
from .store.records import FINAL_STATES
from .store.urls import parse_url

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["PREFIX", "Settings", "is_configured", "is_made_up", "load", "names_journal"]

PREFIX: Final = "durable_"

#: Transports that lose messages which a killed worker had taken.
LOSSY_TRANSPORTS: Final = frozenset({"filesystem", "sqlalchemy", "sqla"})

#: Characters of a secret.
_SHORTEST_SECRET: Final = 16


def _positive(value: Any) -> bool:
    return _not_negative(value) and value > 0


def _not_negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _codes(value: Any) -> tuple[str, ...]:
    codes = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (None,)
    if not all(isinstance(code, str) and re.fullmatch(r"CD\d{3}", code) for code in codes):
        raise ValueError
    return codes


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (None,)
    if not all(map(_text, names)):
        raise ValueError
    return names


def _module_names(value: Any) -> tuple[str, ...]:
    names = _names(value)
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError
    return names


def _secrets(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return value is None or (
        isinstance(texts, (list, tuple))
        and len(texts) > 0
        and all(isinstance(text, str) and len(text) >= _SHORTEST_SECRET for text in texts)
    )


def _setting(default: Any, check: Callable[[Any], bool], wants: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"check": check, "wants": wants, "secret": secret}, repr=not secret)


def _read_seconds(value: Any) -> float | None:
    """A duration as people write it, in seconds; None for no end.

    :raises ValueError: when it is none.
    """
    if value is None:
        return None
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _per_state(value: Mapping[Any, Any]) -> dict[str, Any]:
    known = {state.value for state in FINAL_STATES}
    given = {str(state): each for state, each in value.items() if isinstance(state, str)}
    if len(given) < len(value) or not given.keys() <= known:
        raise ValueError
    return given


def _read_ages(value: Any) -> dict[str, float] | None:
    """How long what has ended is kept: state → seconds; states that are not there are kept for ever.

    :raises ValueError: when it says no such thing.
    """
    if isinstance(value, Mapping):
        ages = {state: _read_seconds(each) for state, each in _per_state(value).items()}
    else:
        ages = dict.fromkeys(sorted(state.value for state in FINAL_STATES), _read_seconds(value))
    return {state: age for state, age in ages.items() if age is not None} or None


def _read_amounts(value: Any) -> int | dict[str, int] | None:
    """How much is kept: of everything together, or state → how much of it.

    :raises ValueError: when it says no such thing.
    """
    if isinstance(value, Mapping):
        amounts = {state: _amount(each) for state, each in _per_state(value).items()}
        return {state: each for state, each in amounts.items() if each is not None} or None
    return _amount(value)


def _amount(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError
    return value


def _read_setting(default: Any, read: Callable[[Any], Any], wants: str) -> Any:
    """A setting that may be written in several ways; ``read`` raises ValueError for any other."""
    return field(default=default, metadata={"read": read, "wants": wants})


_DURATION: Final = "a number of seconds, 0 or more, a timedelta, or None"
_PER_STATE: Final = "or a dict of those for 'completed', 'failed' and 'cancelled'"


@dataclass(frozen=True)
class Settings:
    """All settings; their names in ``app.conf`` have the prefix ``durable_``."""

    #: Where the journal is; an SQLAlchemy URL.
    database_url: str = _setting("sqlite:///celery-durable.db", _text, "a database URL")
    #: How long an owner that gives no sign keeps an execution, in seconds.
    lease_timeout: float = _setting(30.0, _positive, "a number of seconds above 0")
    #: How often recovery looks for what is due, in seconds.
    recovery_interval: float = _setting(1.0, _positive, "a number of seconds above 0")
    #: Within how many seconds a buffered result is committed.
    flush_interval: float = _setting(0.01, _not_negative, "a number of seconds, 0 or more")
    #: Longest wait for the database, in seconds.
    ack_timeout: float = _setting(5.0, _positive, "a number of seconds above 0")
    #: Longest time that one try of a transactional step may take, in seconds.
    transaction_timeout: float = _setting(30.0, _positive, "a number of seconds above 0")
    #: Take-overs after which an execution is quarantined.
    max_attempts: int = _setting(10, _count, "a whole number, 1 or more")
    #: Steps that one attempt of a body may ask for, replayed ones included.
    max_steps: int = _setting(10_000, _count, "a whole number, 1 or more")
    #: Largest encoded value, in bytes.
    max_payload_bytes: int = _setting(1_048_576, _count, "a number of bytes, 1 or more")
    #: Under which serializer values are stored; a name of Kombu's registry.
    serializer: str = _setting("json", _text, "the name of a serializer, such as 'json'")
    #: Other serializers that stored values may be read from, besides JSON; names of Kombu's registry.
    accept_serializers: tuple[str, ...] = _read_setting((), _names, "a list of serializers, such as ['msgpack']")
    #: Modules that hold classes of stored values, imported before anything is read.
    modules: tuple[str, ...] = _read_setting((), _module_names, "a list of modules, such as ['shop.models']")
    #: Keep short texts of the arguments of guarded steps, for people.
    previews: bool = _setting(True, lambda v: isinstance(v, bool), "True or False")
    #: Separates applications that share one database; default: the Celery app's name.
    # MySQL and MariaDB overlook blanks at the end: two applications would be one there.
    namespace: str = _setting(
        "",
        lambda v: isinstance(v, str) and len(v) <= 64 and v == v.strip(),
        "a text of at most 64 characters, without blanks at its ends",
    )
    #: What to do with an execution whose body changed.
    on_divergence: str = _setting("restart", lambda v: v in ("restart", "park"), "'restart' or 'park'")
    #: What to do when the journal cannot be reached.
    on_unavailable: str = _setting("raise", lambda v: v in ("raise", "degrade"), "'raise' or 'degrade'")
    #: Whether a pooler hands the PostgreSQL server's sessions round, a transaction each.
    pooler: str = _setting("auto", lambda v: v in POOLERS, "'auto', 'transaction' or 'none'")
    #: Record executions when they are published; None: on transports that lose messages.
    outbox: bool | None = _setting(None, lambda v: v is None or isinstance(v, bool), "True, False or None")
    #: A database alias of Django's: what is published inside ``atomic()`` on it joins that transaction; None: nothing.
    outbox_using: str | None = _setting(
        None, lambda v: v is None or _text(v), "an alias of Django's DATABASES, or None"
    )
    #: How many seconds after its end an execution is pruned, by its state; None: never.
    retention: Mapping[str, float] | None = _read_setting(None, _read_ages, f"{_DURATION}, {_PER_STATE}")
    #: How many executions that have ended are kept, at most; all together, or by state.
    retention_count: int | Mapping[str, int] | None = _read_setting(
        None, _read_amounts, f"a whole number, 0 or more, None, {_PER_STATE}"
    )
    #: How many bytes of executions that have ended are kept, about; all together, or by state.
    retention_bytes: int | Mapping[str, int] | None = _read_setting(
        None, _read_amounts, f"a number of bytes, 0 or more, None, {_PER_STATE}"
    )
    #: For how many seconds the id of a pruned execution is remembered; None: for ever.
    tombstone_ttl: float | None = _read_setting(604_800.0, _read_seconds, _DURATION)
    #: For how many seconds after the end of its execution a ``key=`` is remembered, at least; None: for ever.
    key_retention: float | None = _read_setting(None, _read_seconds, _DURATION)
    #: Codes of the doctor's findings that are not to be logged, nor to count.
    silence: tuple[str, ...] = _read_setting((), _codes, "a list of codes, such as ['CD901']")
    #: What the tokens of promises and the ids of children are derived from; several, the newest first, while it is
    #: being changed.
    secret: str | Sequence[str] | None = _setting(
        None,
        _secrets,
        f"a text of at least {_SHORTEST_SECRET} characters, or several in a list, the newest first",
        secret=True,
    )

    @property
    def lease_ms(self) -> int:
        """The lease timeout in milliseconds."""
        return int(self.lease_timeout * 1000)


_FIELDS: Final = {f.name: f for f in fields(Settings)}


def load(app: Celery) -> Settings:
    """Read and check the settings of an app.

    :raises ConfigurationError: for an unknown ``durable_*`` key or a bad value; names the key.
    """
    given = _given(app)
    for key in given:
        if key not in _FIELDS:
            raise ConfigurationError(_unknown(key))
    values = {}
    for name, value in given.items():
        values[name] = _checked(name, value)
    if "database_url" not in values and is_made_up(app):
        raise ConfigurationError(
            "there is no Celery application here except the default one that Celery creates by itself. Pass app=, or "
            "call app.set_default() once, which makes yours the default in every thread."
        )
    settings = Settings(**values)
    if settings.flush_interval >= settings.lease_timeout:
        raise ConfigurationError(
            f"{PREFIX}flush_interval = {settings.flush_interval!r} must be much shorter than {PREFIX}lease_timeout = "
            f"{settings.lease_timeout!r}."
        )
    if settings.ack_timeout >= settings.lease_timeout:
        # A commit that may take longer than the lease would let a live owner lose it.
        if "ack_timeout" in values:
            raise ConfigurationError(
                f"{PREFIX}ack_timeout = {settings.ack_timeout!r} must be shorter than {PREFIX}lease_timeout = "
                f"{settings.lease_timeout!r}."
            )
        settings = replace(settings, ack_timeout=settings.lease_timeout / 2)
    if not settings.namespace:
        settings = replace(settings, namespace=str(app.main or "")[:64].strip() or "celery")
    if settings.outbox is None:
        settings = replace(settings, outbox=_loses_messages(app))
    settings = replace(settings, database_url=django_place.resolve(settings.database_url))
    parse_url(settings.database_url)
    format_of_setting(settings.serializer)
    for name in settings.accept_serializers:
        format_of_setting(name, f"{PREFIX}accept_serializers")
    return settings


def is_made_up(app: Celery) -> bool:
    """Whether an application is none of the program's, but what Celery makes up in a thread that has none."""
    made: Any = app
    theirs = _state.default_app  # type: ignore[attr-defined]
    # A program gives its application fix-ups, or leaves it to Celery which; this one is made with none.
    return made is theirs and made.main == "default" and made.fixups == []


def is_configured(app: Celery) -> bool:
    """Whether an application has any setting of ours."""
    return bool(_given(app))


def names_journal(app: Celery) -> bool:
    """Whether an application's settings say where its journal is."""
    return "database_url" in _given(app)


def _checked(name: str, value: Any) -> Any:
    meta = _FIELDS[name].metadata
    try:
        if "read" in meta:
            return meta["read"](value)
        if meta["check"](value):
            return value
    except ValueError:
        pass
    shown = "(not shown)" if meta.get("secret") else repr(value)
    raise ConfigurationError(f"{PREFIX}{name} = {shown}: it must be {meta['wants']}.")


def _given(app: Celery) -> Mapping[str, Any]:
    """The ``durable_*`` keys that the user set, without the prefix; in Django's and others' namespaces too."""
    conf = app.conf
    found: dict[str, Any] = {}
    # ChainMap order: what ranks higher comes later here, so that it wins.
    for mapping in reversed([m for m in getattr(conf, "maps", [conf]) if m]):
        for key in list(mapping):
            name = _strip(key, getattr(app, "namespace", None))
            if name is not None:
                found[name] = mapping[key]
    return found


def _strip(key: Any, namespace: str | None) -> str | None:
    if not isinstance(key, str):
        return None
    lowered = key.lower()
    prefix = f"{namespace.lower()}_" if isinstance(namespace, str) and namespace else None
    if prefix and lowered.startswith(prefix):
        lowered = lowered[len(prefix) :]
    elif key != lowered and (prefix or not key.isupper()):
        return None  # in a namespace, what lies outside it is somebody else's
    return lowered[len(PREFIX) :] if lowered.startswith(PREFIX) else None


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    hint = f" Did you mean {PREFIX}{near[0]}?" if near else f" Known are: {', '.join(PREFIX + n for n in _FIELDS)}."
    return f"unknown setting {PREFIX}{name}.{hint}"


def _loses_messages(app: Celery) -> bool:
    url = app.conf.get("broker_write_url") or app.conf.get("broker_url") or ""
    if isinstance(url, (list, tuple)):
        url = url[0] if url else ""
    scheme = str(url).split("://", 1)[0].lower().split("+", 1)[0]
    return scheme in LOSSY_TRANSPORTS
