"""The error family.

Everything this library raises on purpose derives from :class:`DurableError`. Most members are ordinary
exceptions. Three are not: :class:`ReplayDivergence` and :class:`LeaseLost` mean that the running body has no
right to go on, so ``except Exception`` in a body must not be able to hide them. That is why the base
derives from :class:`BaseException` and the ordinary members add :class:`Exception`.

Every class carries a stable ``code``, which is also printed in the message and listed in the docs.
All of them can be pickled (Celery sends them between processes): the message is the one positional
argument, everything else is an attribute.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AmbiguityPolicyRequired",
    "AmbiguousEffect",
    "ChildCancelled",
    "ChildFailed",
    "ChildTimeout",
    "ConfigurationError",
    "ContextClosed",
    "DurableError",
    "DurableIdConflict",
    "ErrorPlaceholder",
    "ExecutionCancelled",
    "ExecutionParked",
    "FingerprintError",
    "GuardConflict",
    "JournalCorrupted",
    "JournalUnavailable",
    "LeaseLost",
    "NestedStep",
    "PayloadError",
    "PayloadTooLarge",
    "PromiseRejected",
    "PromiseSettled",
    "PromiseTimeout",
    "ReplayDivergence",
    "ResultLost",
    "ResultTimeout",
    "SchemaError",
    "StepLimitExceeded",
    "TransactionMisused",
    "TransactionTimeout",
    "UnknownExecution",
    "UnknownStep",
    "WrongState",
    "WrongToken",
]


class DurableError(BaseException):
    """Base of every error of this library.

    :param message: what is wrong and what to do about it.
    :param details: facts for programs (execution id, step name, ...); they become attributes.
    """

    code: ClassVar[str] = "CD000"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    @property
    def message(self) -> str:
        """The text without the code."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class ConfigurationError(DurableError, Exception):
    """A ``durable_*`` setting or the wiring of a task is wrong."""

    code = "CD001"


class SchemaError(DurableError, Exception):
    """The journal's tables are missing or of another version; run ``celery -A proj durable upgrade``."""

    code = "CD002"


class UnknownExecution(DurableError, Exception):
    """No execution with this id exists in this namespace."""

    code = "CD003"


class WrongState(DurableError, Exception):
    """The execution is not in a state in which this can be done to it."""

    code = "CD004"


class DurableIdConflict(DurableError, Exception):
    """The ``durable_id`` belongs to another call: of another task, or with other arguments. Nothing was sent.

    Attributes: ``execution_id``, ``task`` (of the execution that has the id).
    """

    code = "CD005"


class ExecutionParked(DurableError, Exception):
    """The result was asked for of an execution that waits for an operator.

    Attributes: ``execution_id``, ``state`` (``"ambiguous"`` or ``"quarantined"``), ``reason``.
    """

    code = "CD006"


class ExecutionCancelled(DurableError, Exception):
    """The result was asked for of an execution that was cancelled.

    Attributes: ``execution_id``, ``reason``.
    """

    code = "CD007"


class ResultTimeout(DurableError, TimeoutError):
    """The execution had not ended when the caller's patience had; it goes on.

    Attributes: ``execution_id``, ``state``.
    """

    code = "CD008"


class UnknownStep(DurableError, Exception):
    """The journal has no such step, or several of its name.

    Attributes: ``execution_id``.
    """

    code = "CD009"


class ReplayDivergence(DurableError):
    """The body asked for another step than its journal has at that position.

    A :class:`BaseException`: a body that catches ``Exception`` must not go on with a misread journal (G5).
    Its code tells what differs; the codes start with ``CD1``.
    """

    code = "CD100"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.code = details.get("code", type(self).code)  # type: ignore[misc]


class FingerprintError(DurableError, Exception):
    """An argument of a step has no canonical form; give the step a ``fingerprint=``.

    Also an argument of a task that is called with a ``durable_id``.
    """

    code = "CD201"


class NestedStep(DurableError, Exception):
    """A step was asked for inside the operation of another step."""

    code = "CD202"


class ContextClosed(DurableError, Exception):
    """The durable context was used outside the body, or after the body it belongs to had ended."""

    code = "CD203"


class StepLimitExceeded(DurableError, Exception):
    """The body asked for more steps than ``durable_max_steps``."""

    code = "CD204"


class TransactionMisused(DurableError, Exception):
    """The operation of a transactional step ended its transaction itself, or left it in a state that cannot commit."""

    code = "CD221"


class TransactionTimeout(DurableError, Exception):
    """One try of a transactional step took longer than ``durable_transaction_timeout``; it was rolled back."""

    code = "CD222"


class AmbiguityPolicyRequired(DurableError, Exception):
    """A guarded step was built without saying what to do when nobody knows whether its effect happened."""

    code = "CD301"


class AmbiguousEffect(DurableError, Exception):
    """A guarded step has an intent but no result, and its policy does not allow to guess.

    Attributes: ``execution_id``, ``step_id``, ``step`` (its name), ``key`` (the idempotency key, 32 bytes).
    """

    code = "CD302"


class GuardConflict(DurableError, Exception):
    """A guarded step came back under other arguments than those under which it already ran; nothing was called.

    Attributes: ``execution_id``, ``step_id``, ``step`` (its name).
    """

    code = "CD303"


class ResultLost(DurableError, Exception):
    """A guarded operation was done, but its result could not be stored. It is never run again.

    Attributes: ``execution_id``, ``step_id``, ``step`` (its name).
    """

    code = "CD304"


class PayloadError(DurableError, Exception):
    """A value cannot be encoded for the journal, or what the journal holds cannot be decoded."""

    code = "CD401"


class PayloadTooLarge(PayloadError):
    """An encoded value is larger than ``durable_max_payload_bytes``."""

    code = "CD402"


class JournalCorrupted(PayloadError):
    """A journal row contradicts itself or its neighbours."""

    code = "CD403"


class ErrorPlaceholder(DurableError, Exception):
    """Stands for a recorded exception whose class cannot be imported any more.

    ``original`` holds the dotted name of that class.
    """

    code = "CD404"


class JournalUnavailable(DurableError, Exception):
    """The journal's database did not answer within ``durable_ack_timeout``."""

    code = "CD501"


class LeaseLost(DurableError):
    """Another owner took the execution over; this one may neither commit nor start anything.

    A :class:`BaseException`: there is nothing a body could do about it (G3).
    """

    code = "CD502"


class PromiseRejected(DurableError, Exception):
    """Whoever was to keep a promise has rejected it.

    Attributes: ``promise`` (its name), ``promise_id``, ``reason`` (a text), and ``error``: the exception that it was
    rejected with, which is also the ``__cause__``, or None.
    """

    code = "CD601"


class PromiseTimeout(DurableError, Exception):
    """A promise was not kept in time: its ``timeout`` ran out, or its ``heartbeat`` stayed away.

    Attributes: ``promise`` (its name), ``promise_id``.
    """

    code = "CD602"


class PromiseSettled(DurableError, Exception):
    """A promise can be settled once, and this one is settled otherwise already.

    Attributes: ``promise_id``, ``state`` (``resolved``, ``rejected`` or ``expired``).
    """

    code = "CD603"


class ChildFailed(DurableError, Exception):
    """A child task has failed.

    Attributes: ``child`` (its name), ``child_id`` (its task id), ``reason`` (a text), and ``error``: the exception with
    which it failed, which is also the ``__cause__``, or None.
    """

    code = "CD611"


class ChildCancelled(ChildFailed):
    """A child task was revoked or cancelled, or was not needed any more."""

    code = "CD612"


class ChildTimeout(ChildFailed):
    """A child task had not ended when its ``timeout`` was over; it was cancelled."""

    code = "CD613"


class WrongToken(DurableError, Exception):
    """There is no promise of this id and token."""

    code = "CD604"
