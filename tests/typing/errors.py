"""What type checkers know of the errors' attributes. Only mypy and pyright read this file."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celery_durable import (
    AmbiguousEffect,
    ChildCancelled,
    ChildFailed,
    ChildTimeout,
    ConfigurationError,
    DurableError,
    DurableIdConflict,
    ErrorPlaceholder,
    ExecutionCancelled,
    ExecutionParked,
    FingerprintError,
    GuardConflict,
    JournalCorrupted,
    LeaseLost,
    PayloadError,
    PayloadTooLarge,
    PromiseRejected,
    PromiseSettled,
    PromiseTimeout,
    ReplayDivergence,
    ResultLost,
    ResultTimeout,
    UnknownStep,
)


def facts(
    rejected: PromiseRejected,
    child: ChildFailed,
    settled: PromiseSettled,
    doubt: AmbiguousEffect,
    gone: ErrorPlaceholder,
    parked: ExecutionParked,
    differs: ReplayDivergence,
) -> None:
    assert_type(rejected.reason, str)
    assert_type(rejected.error, Exception | None)
    assert_type(child.child_id, str)
    assert_type(settled.state, str)
    assert_type(doubt.key, bytes)
    assert_type(gone.original, str)
    assert_type(parked.reason, str)
    assert_type(differs.place, str)


def of_all(error: DurableError) -> None:
    assert_type((error.code, error.message, error.docs_url), tuple[str, str, str])
    error.docs_url = "elsewhere"  # type: ignore[misc]


def for_callers(
    conflict: DurableIdConflict,
    cancelled: ExecutionCancelled,
    late: ResultTimeout,
    unknown: UnknownStep,
    parked: ExecutionParked,
) -> None:
    assert_type((conflict.execution_id, conflict.task), tuple[str, str])
    assert_type((cancelled.execution_id, cancelled.reason), tuple[str, str])
    assert_type((late.execution_id, late.state), tuple[str, str])
    assert_type(unknown.execution_id, str)
    assert_type((parked.execution_id, parked.state), tuple[str, str])


def in_a_body(
    doubt: AmbiguousEffect,
    conflict: GuardConflict,
    lost: ResultLost,
    large: PayloadTooLarge,
    rejected: PromiseRejected,
    expired: PromiseTimeout,
    cancelled: ChildCancelled,
    late: ChildTimeout,
) -> None:
    assert_type((doubt.execution_id, doubt.step_id, doubt.step), tuple[str, str, str])
    assert_type((conflict.execution_id, conflict.step_id, conflict.step), tuple[str, str, str])
    assert_type((lost.execution_id, lost.step_id, lost.step), tuple[str, str, str])
    assert_type((large.size, large.limit), tuple[int | str, int])
    assert_type((rejected.promise, rejected.promise_id), tuple[str, str])
    assert_type((expired.promise, expired.promise_id), tuple[str, str])
    assert_type((cancelled.child, cancelled.reason), tuple[str, str])
    assert_type(late.error, Exception | None)
    print(doubt.reasons)  # type: ignore[attr-defined]


def where_there_is_something_to_say(
    wrong: ConfigurationError,
    argument: FingerprintError,
    value: PayloadError,
    row: JournalCorrupted,
    gone: ErrorPlaceholder,
    lost: LeaseLost,
) -> None:
    assert_type(wrong.setting, str | None)
    assert_type((argument.step, argument.task, argument.argument), tuple[str | None, str | None, str | None])
    assert_type((argument.where, argument.path), tuple[str | None, str | None])
    assert_type((value.where, value.path, value.kind), tuple[str | None, str | None, str | None])
    assert_type(row.where, str | None)
    assert_type((gone.original_args, gone.original_text), tuple[tuple[Any, ...], str])
    assert_type(lost.state, str | None)
    print(value.where.upper())  # type: ignore[union-attr]
