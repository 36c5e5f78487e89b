"""Makes sure that the transaction of a transactional step ends with the step, and not before.

A statement that would end it is refused before it is sent. If its text does not show this (a comment that MySQL
executes, DDL there, a procedure), the transaction state does, which the server sends with each answer at no cost.
"""

from __future__ import annotations

import re
from typing import Any, Final

from celery_durable.errors import TransactionMisused

__all__ = ["Unended", "refuse_end"]

#: Statements that end a transaction, or begin another one in its place, but not those of savepoints.
_END: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*(?!M?!)(?:[^*]|\*(?!/))*\*/)*(?:/\*M?!\d*\s*)?"
    r"(commit|end|abort|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b)"
    r"|begin(?!\s+not\b)|start\s+transaction|prepare\s+transaction|lock\s+tables"
    r"|set\s+(?:(?:session|local|@@)[\s.]*)?autocommit)\b",
    re.IGNORECASE,
)
#: On MySQL and MariaDB these commit by themselves.
_COMMITS_THERE: Final = re.compile(
    r"(?:\s|--[^\n]*\n|#[^\n]*\n|/\*[^!](?:[^*]|\*(?!/))*\*/)*"
    r"((?:create|drop|alter)(?!\s+(?:or\s+replace\s+)?temporary\b)|truncate|rename)\s",
    re.IGNORECASE,
)
#: Statements that contain others, which are not executed now.
_COMPOUND: Final = re.compile(r"\s*(?:create|alter|begin|declare|do)\b", re.IGNORECASE)
#: Strings, names and comments: a semicolon in them ends no statement. Databases differ in whether strings have escapes.
_REST: Final = r"\"(?:[^\"]|\"\")*\"|`[^`]*`|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*(?!M?!)(?:[^*]|\*(?!/))*\*/"
_OPAQUE: Final = (
    re.compile(rf"'(?:[^']|'')*'|{_REST}", re.DOTALL),
    re.compile(rf"'(?:[^'\\]|\\.|'')*'|{_REST}", re.DOTALL),
)


def refuse_end(statement: Any, dialect: str = "") -> None:
    """Check a statement of the operation before it is executed.

    :param dialect: of the database.
    :raises TransactionMisused: when it would end the transaction, which only the library may do.
    """
    if not isinstance(statement, str):
        return
    end = _END.match(statement) or (_later_end(statement) if ";" in statement else None)
    if end is None and dialect in ("mysql", "mariadb"):
        end = _COMMITS_THERE.match(statement)
    if end:
        raise TransactionMisused(
            f"the operation of a transactional step must neither commit nor roll back, and {end[1].upper()} would: its "
            "rows and the step's journal entry are committed together when it returns. To undo what it did, let it "
            "raise an exception."
        )


def _later_end(statement: str) -> re.Match[str] | None:
    """The end of a transaction among several statements, if it is found with and without escapes in strings."""
    if _COMPOUND.match(statement):
        return None
    found = None
    for opaque in _OPAQUE:
        parts = opaque.sub(" ", statement).split(";")
        found = next((end for end in map(_END.match, parts) if end), None)
        if found is None:
            return None
    return found


class Unended:
    """Checks that a transaction is still the one that was begun, as far as the driver knows without a query.

    :param raw: the driver's connection.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._begun = False
        #: It was not: what the operation wrote before is committed or rolled back.
        self.ended = False

    def look(self) -> None:
        """Check the transaction, before and after a statement.

        :raises TransactionMisused: when a statement has ended it.
        """
        inside = _inside(self._raw)
        if inside is None or (inside and not self.ended):
            self._begun = self._begun or bool(inside)
            return
        if self._begun or self.ended or _commits_each(self._raw):
            self.ended = True
            raise TransactionMisused(
                "the operation of a transactional step has ended its transaction: by COMMIT or ROLLBACK, or on MySQL "
                "by a statement that commits by itself (DDL, SET autocommit). What it wrote before may be "
                "committed without the step's journal entry. Leave such statements out of it."
            )


#: Flags of the status that MySQL sends with each answer: a transaction is open; each statement commits by itself.
_IN_TRANSACTION: Final = 1
_AUTOCOMMIT: Final = 2


def _inside(raw: Any) -> bool | None:
    """Whether a transaction is open, according to the last answer; None if the driver does not tell."""
    status = getattr(raw, "server_status", None)
    if status is not None:
        return bool(status & _IN_TRANSACTION) and not status & _AUTOCOMMIT
    libpq = getattr(raw, "pgconn", None) or getattr(raw, "info", None)
    status = getattr(libpq, "transaction_status", None)
    if status is not None:
        return int(status) != 0
    inside = getattr(raw, "in_transaction", None)  # SQLite
    return inside if isinstance(inside, bool) else None


def _commits_each(raw: Any) -> bool:
    return bool((getattr(raw, "server_status", None) or 0) & _AUTOCOMMIT)
