"""Sends SQLite the usual transactions through its driver: a few prepared statements each, and no server in between.

The statements are those of the other databases, in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Engine

from ..first_commit import insert_unless_known
from ..records import Batch, Entry, Journaled, PayloadKind, StoredPayload
from ..rows import put_payload_statement
from ..statements import FENCE, INSERT_PAYLOAD, KNOWN, SEGMENT, let_go
from ..tables import journal, now_ms, payloads
from .base import LastCommit, to_journaled

__all__ = ["SQLite"]

T = TypeVar("T")

#: How many unused connections are kept open.
_KEPT: Final = 8
_DIALECT: Final = sqlite.dialect(paramstyle="qmark")
#: The order of an entry's parameters.
_ENTRY: Final = [column.name for column in journal.columns if column.name != "at"]


class _Form:
    """A statement in the form that the driver takes."""

    def __init__(self, statement: Any) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self.sql = str(compiled)
        self.order: list[str] = list(compiled.positiontup)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._pick = itemgetter(*self.order)

    def pick(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """The parameters in the order of the statement."""
        picked: tuple[Any, ...] = self._pick({**self._constants, **values} if self._constants else values)
        return picked


@functools.cache
def _known() -> _Form:
    return _Form(KNOWN)


@functools.cache
def _segment() -> _Form:
    return _Form(SEGMENT)


@functools.cache
def _fence() -> str:
    form = _Form(FENCE)
    assert form.order == ["b_lease", "b_steps", "b_pk", "b_epoch"]
    return form.sql


@functools.cache
def _entry() -> str:
    values = {name: sa.bindparam(name, type_=journal.c[name].type) for name in _ENTRY}
    form = _Form(sa.insert(journal).values(**values, at=now_ms()))
    # The clock is no parameter, so the others are in the order of the columns.
    assert form.order == _ENTRY
    return form.sql


@functools.cache
def _payload(replace: bool) -> str:
    names = [column.name for column in payloads.columns]
    statement = put_payload_statement("sqlite") if replace else INSERT_PAYLOAD
    form = _Form(statement.values({name: sa.bindparam(name) for name in names}))
    assert form.order == names
    return form.sql


@functools.cache
def _let_go(columns: tuple[str, ...], waits: bool) -> _Form:
    return _Form(let_go(*columns, waits=waits))


@functools.cache
def _insert(columns: tuple[str, ...], leased: bool) -> _Form:
    return _Form(insert_unless_known("sqlite", *columns, leased=leased))


class SQLite:
    """The usual transactions of SQLite; see :class:`~.base.Driver`.

    :param engine: opens the connections, which are used for nothing else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: The one used last is taken first.
        self._idle: deque[Any] = deque()

    # -- reading --------------------------------------------------------------------------------------------

    def known(self, namespace: str, execution_id: str) -> bool:
        form = _known()
        values = form.pick({"namespace": namespace, "id": execution_id})
        return self._with(lambda driver: driver.execute(form.sql, values).fetchone()) is not None

    def segment(self, place: dict[str, Any]) -> list[Journaled]:
        form = _segment()
        return list(map(to_journaled, self._with(lambda driver: driver.execute(form.sql, form.pick(place)).fetchall())))

    # -- transactions ---------------------------------------------------------------------------------------

    def append(self, batch: Batch, lease_ms: int) -> bool:
        fence = (lease_ms, batch.steps, *batch.fence)

        def transaction(driver: Any) -> bool:
            driver.execute("BEGIN IMMEDIATE")
            if not driver.execute(_fence(), fence).rowcount:
                return _undo(driver)
            _write(driver, batch)
            return _commit(driver)

        return self._with(transaction)

    def begin(self, batch: Batch, row: dict[str, Any], envelope: StoredPayload) -> bool:
        def transaction(driver: Any) -> bool:
            driver.execute("BEGIN IMMEDIATE")
            if not _born(driver, (), True, row, envelope):
                return _undo(driver)
            _write(driver, batch)
            return _commit(driver)

        return self._with(transaction)

    def open_new(self, row: dict[str, Any], envelope: StoredPayload) -> bool:
        def transaction(driver: Any) -> bool:
            # Inside a transaction this setting cannot be changed.
            driver.execute("PRAGMA synchronous = NORMAL")
            try:
                driver.execute("BEGIN IMMEDIATE")
                return _commit(driver) if _born(driver, (), True, row, envelope) else _undo(driver)
            finally:
                driver.execute("PRAGMA synchronous = FULL")

        return self._with(transaction)

    def settle(self, last: LastCommit) -> bool:
        batch = last.batch

        def transaction(driver: Any) -> bool:
            driver.execute("BEGIN IMMEDIATE")
            if batch.birth is not None:
                if not _born(driver, last.columns, False, last.bound, last.envelope):
                    return _undo(driver)
            else:
                form = _let_go(last.columns, last.waits)
                if not driver.execute(form.sql, form.pick(last.bound)).rowcount:
                    return _undo(driver)
            _write(driver, batch)
            if last.payload is not None:
                driver.execute(_payload(True), (batch.fence.pk, int(last.kind), *last.payload))
            return _commit(driver)

        return self._with(transaction)

    # -- connections ----------------------------------------------------------------------------------------

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._engine.raw_connection()

    def _with(self, work: Callable[[Any], T]) -> T:
        line: Any = None
        try:
            line = self._take()
            answer = work(line.dbapi_connection)
        except BaseException as error:
            if line is not None:
                # It may be inside a transaction: closing the connection rolls it back.
                line.invalidate()
                line.close()
            if not isinstance(error, sqlite3.Error):
                raise
            dialect = self._engine.dialect
            raise exc.DBAPIError.instance(
                None, None, error, sqlite3.Error, hide_parameters=True, connection_invalidated=False, dialect=dialect
            ) from error
        if len(self._idle) < _KEPT:
            self._idle.append(line)
        else:
            line.close()
        return answer


# The parts of a transaction, with few calls: after each sync to disk the processor's caches are cold.


def _commit(driver: Any) -> bool:
    driver.execute("COMMIT")
    return True


def _undo(driver: Any) -> bool:
    driver.execute("ROLLBACK")
    return False


def _born(
    driver: Any, columns: tuple[str, ...], leased: bool, row: dict[str, Any], envelope: StoredPayload | None
) -> bool:
    """Insert an execution and its message; False when there is one of this id."""
    form = _insert(columns, leased)
    if not driver.execute(form.sql, form.pick(row)).rowcount:
        return False
    if envelope is not None:
        driver.execute(_payload(False), (row["b_pk"], int(PayloadKind.ENVELOPE), *envelope))
    return True


def _write(driver: Any, batch: Batch) -> None:
    """Write entries; the transaction has verified their fence."""
    entries = batch.entries
    if len(entries) == 1:
        driver.execute(_entry(), _row(batch, entries[0]))
    elif entries:
        driver.executemany(_entry(), [_row(batch, entry) for entry in entries])


def _row(batch: Batch, entry: Entry) -> tuple[Any, ...]:
    pk, epoch = batch.fence
    codec, payload = entry.payload or (None, None)
    return (
        pk,
        batch.generation,
        entry.scope,
        entry.position,
        entry.entry,
        int(entry.kind),
        None if entry.effect is None else int(entry.effect),
        entry.name,
        entry.fingerprint,
        entry.key,
        epoch,
        entry.attempt,
        entry.duration_us,
        codec,
        payload,
    )
