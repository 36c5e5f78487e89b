"""How a transactional step runs: what its operation gets, at which isolation level, and how often it may run."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

from sqlalchemy.engine import Connection

from celery_durable.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

__all__ = [
    "TRIES",
    "AnyTransactional",
    "DjangoTransactional",
    "Giver",
    "Isolation",
    "Transactional",
    "check_transaction",
    "is_asynchronous",
    "is_giver",
    "transactional",
]

#: How often an operation is run at most, where nobody says. Of two that take turns without a pause each loses every
#: other time: five tries are lost by one in thirty, ten by one in a thousand.
TRIES: Final = 10

#: Isolation levels that the three databases have in common.
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
_LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

#: What makes the operation's first argument; the asynchronous ones are for coroutine functions.
Giver: TypeAlias = (
    "type[Connection] | type[Session] | sessionmaker[Any] "
    "| type[AsyncConnection] | type[AsyncSession] | async_sessionmaker[Any]"
)


def is_giver(given: Any) -> bool:
    """Whether it can make an operation's first argument."""
    if isinstance(given, type) and issubclass(given, Connection):
        return True
    # Who has one has imported it.
    orm = sys.modules.get("sqlalchemy.orm")
    return (orm is not None and _is_one_of(given, (orm.Session,), orm.sessionmaker)) or is_asynchronous(given)


def is_asynchronous(given: Any) -> bool:
    """Whether it can make that of a coroutine function."""
    # Who has one has imported it. Without greenlet, it cannot be imported.
    parts = sys.modules.get("sqlalchemy.ext.asyncio")
    return parts is not None and _is_one_of(
        given, (parts.AsyncConnection, parts.AsyncSession), parts.async_sessionmaker
    )


def _is_one_of(given: Any, classes: tuple[type, ...], factory: type) -> bool:
    return isinstance(given, factory) or (isinstance(given, type) and issubclass(given, classes))


def _check_tries(tries: Any) -> None:
    if not isinstance(tries, int) or isinstance(tries, bool) or tries < 1:
        raise ConfigurationError(f"transactional(tries={tries!r}): a whole number, 1 or more.")


@dataclass(frozen=True)
class Transactional:
    """How a transactional step runs. Built by :func:`transactional`.

    :raises ConfigurationError: for invalid values.
    """

    #: What the operation gets: ``Connection``, a ``Session`` class, or a ``sessionmaker``; for a coroutine function,
    #: ``AsyncConnection``, an ``AsyncSession`` class, or an ``async_sessionmaker``. ``None``: the annotation of its
    #: first parameter decides; without one, a ``Session`` or ``AsyncSession``.
    session: Giver | None = None
    #: The transaction's isolation level; ``None``: READ COMMITTED. SQLite is always serializable.
    isolation: Isolation | None = None
    #: The most runs of the operation, if the database rolls it back because of another transaction.
    tries: int = TRIES

    def __post_init__(self) -> None:
        given: Any = self.session
        if given is not None and not is_giver(given):
            raise ConfigurationError(
                "transactional(session=...) takes Connection, a Session class or a sessionmaker, or for a coroutine "
                f"function AsyncConnection, an AsyncSession class or an async_sessionmaker, not {given!r}."
            )
        if self.isolation is not None and self.isolation not in _LEVELS:
            raise ConfigurationError(
                f"transactional(isolation={self.isolation!r}): choose one of {', '.join(map(repr, _LEVELS))}."
            )
        _check_tries(self.tries)


@dataclass(frozen=True)
class DjangoTransactional:
    """How a transactional step with Django's connection runs. Built by :func:`transactional`.

    :raises ConfigurationError: for invalid values.
    """

    #: The database alias.
    using: str
    #: The most runs of the operation, if the database rolls it back because of another transaction.
    tries: int = TRIES

    def __post_init__(self) -> None:
        using: Any = self.using
        if not isinstance(using, str) or not using:
            raise ConfigurationError(f"transactional(using={using!r}) takes an alias of DATABASES.")
        _check_tries(self.tries)


#: How any transactional step runs.
AnyTransactional = Transactional | DjangoTransactional


def check_transaction(name: str, how: AnyTransactional | None, op: Any) -> None:
    """Refuse a coroutine function in a transaction of Django's, which has none for them.

    :param name: of the step.
    :raises ConfigurationError: names it.
    """
    if isinstance(how, DjangoTransactional) and inspect.iscoroutinefunction(op):
        raise ConfigurationError(
            f"step {name!r}: Django's transactions are for plain functions; with using=, the operation of a "
            "transactional step is a plain one, in async bodies too."
        )


@overload
def transactional(
    *, session: Giver | None = None, isolation: Isolation | None = None, tries: int = TRIES
) -> Transactional: ...


@overload
def transactional(*, using: str, tries: int = TRIES) -> DjangoTransactional: ...


def transactional(
    *,
    session: Giver | None = None,
    isolation: Isolation | None = None,
    tries: int = TRIES,
    using: str | None = None,
) -> AnyTransactional:
    """Mark a step whose writes go to the journal's own database: ``@step(effect=transactional())``.

    Its operation gets a session or connection as its first argument, which the caller does not pass. What it writes
    commits together with the step's journal entry, exactly once. It must not commit, and may run several times.

    :param session: what the operation gets: ``Connection``, a ``Session`` class or a ``sessionmaker``; for a coroutine
        function ``AsyncConnection``, an ``AsyncSession`` class or an ``async_sessionmaker``. Default: the annotation of
        its first parameter decides; without one, a ``Session`` or ``AsyncSession``.
    :param isolation: the transaction's isolation level; default READ COMMITTED. SQLite is always serializable.
    :param tries: the most runs of the operation, if the database rolls the transaction back because of another one
        (serialization failures, deadlocks).
    :param using: a database alias of Django's, which must be the journal's database: the operation runs inside
        ``transaction.atomic(using=...)`` and uses the ORM; it gets no session.
    :raises ConfigurationError: for invalid values.
    """
    if using is None:
        return Transactional(session, isolation, tries)
    if session is not None or isolation is not None:
        raise ConfigurationError(
            "transactional(using=...) is a transaction of Django's: its operation gets no session, and its isolation "
            "level is that of DATABASES."
        )
    return DjangoTransactional(using, tries)
