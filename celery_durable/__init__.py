"""Durable execution for Celery: tasks that survive retries, kills and redelivery."""

from __future__ import annotations

from .context import DurableContext
from .current import StepHandle, current_step
from .effects import DID_NOT_HAPPEN, UNKNOWN, Effect, Guard, Happened, Intent, OnAmbiguous, Verdict, guarded
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
from .handle import ExecutionHandle, ExecutionStatus, StepInfo, get
from .logger import get_logger
from .outbox import enqueue
from .parallel import Branch, Parallel
from .promise import Promise, Selected, Timer
from .publish import outbox_batch
from .resolving import heartbeat, reject, resolve
from .retry import Retry
from .signals import execution_parked
from .step import Step, StepDescriptor, StepRecord, step
from .store.records import State
from .task import DurableTask
from .timeline import StepOutcome
from .transactional import DjangoTransactional, Transactional, transactional

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
    "current_step",
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
