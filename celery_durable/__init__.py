"""Durable execution for Celery: tasks that survive retries, kills and redelivery."""

from __future__ import annotations

from .app.closing import close
from .client.enqueue import enqueue
from .client.handle import ExecutionHandle, ExecutionStatus, StepInfo, get
from .client.promises import heartbeat, reject, resolve
from .context.durable import DurableContext
from .context.logger import get_logger
from .context.parallel import Branch, Parallel
from .effects import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    DjangoTransactional,
    Effect,
    Guard,
    Happened,
    Intent,
    OnAmbiguous,
    Transactional,
    Verdict,
    guarded,
    transactional,
)
from .errors import (
    AmbiguityPolicyRequired,
    AmbiguousEffect,
    ChildCancelled,
    ChildFailed,
    ChildTimeout,
    ConfigurationError,
    ContextClosed,
    DurableError,
    DurableIdConflict,
    EntryRefused,
    ErrorPlaceholder,
    ExecutionCancelled,
    ExecutionParked,
    FingerprintError,
    GuardConflict,
    JournalCorrupted,
    JournalUnavailable,
    LeaseLost,
    NestedStep,
    PayloadError,
    PayloadTooLarge,
    PromiseRejected,
    PromiseSettled,
    PromiseTimeout,
    ReplayDivergence,
    ResultLost,
    ResultTimeout,
    SchemaError,
    StepLimitExceeded,
    TransactionMisused,
    TransactionTimeout,
    UnknownExecution,
    UnknownStep,
    WrongState,
    WrongToken,
)
from .journal.timeline import StepOutcome
from .messaging.publishing import outbox_batch
from .signals import ambiguity_decided, execution_parked
from .steps.call import StepHandle
from .steps.current import current_step
from .steps.decorator import Step, step
from .steps.descriptor import StepDescriptor, StepRecord
from .steps.retry import Retry
from .store.records import State
from .task import DurableTask, durable_task
from .waits.promise import Promise, Selected, Timer

__all__ = [
    "DID_NOT_HAPPEN",
    "UNKNOWN",
    "AmbiguityPolicyRequired",
    "AmbiguousEffect",
    "Branch",
    "ChildCancelled",
    "ChildFailed",
    "ChildTimeout",
    "ConfigurationError",
    "ContextClosed",
    "DjangoTransactional",
    "DurableContext",
    "DurableError",
    "DurableIdConflict",
    "DurableTask",
    "Effect",
    "EntryRefused",
    "ErrorPlaceholder",
    "ExecutionCancelled",
    "ExecutionHandle",
    "ExecutionParked",
    "ExecutionStatus",
    "FingerprintError",
    "Guard",
    "GuardConflict",
    "Happened",
    "Intent",
    "JournalCorrupted",
    "JournalUnavailable",
    "LeaseLost",
    "NestedStep",
    "OnAmbiguous",
    "Parallel",
    "PayloadError",
    "PayloadTooLarge",
    "Promise",
    "PromiseRejected",
    "PromiseSettled",
    "PromiseTimeout",
    "ReplayDivergence",
    "ResultLost",
    "ResultTimeout",
    "Retry",
    "SchemaError",
    "Selected",
    "State",
    "Step",
    "StepDescriptor",
    "StepHandle",
    "StepInfo",
    "StepLimitExceeded",
    "StepOutcome",
    "StepRecord",
    "Timer",
    "TransactionMisused",
    "TransactionTimeout",
    "Transactional",
    "UnknownExecution",
    "UnknownStep",
    "Verdict",
    "WrongState",
    "WrongToken",
    "ambiguity_decided",
    "close",
    "current_step",
    "durable_task",
    "enqueue",
    "execution_parked",
    "get",
    "get_logger",
    "guarded",
    "heartbeat",
    "outbox_batch",
    "reject",
    "resolve",
    "step",
    "transactional",
]

# Journals name classes as `module:qualname`. These may be values in them, so their names must not depend on where they
# are defined in the package.
for _value in (
    Effect,
    ExecutionStatus,
    Guard,
    Happened,
    Intent,
    OnAmbiguous,
    Retry,
    Selected,
    State,
    StepInfo,
    StepOutcome,
    StepRecord,
):
    _value.__module__ = __name__
del _value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__all__", "__doc__"]
