"""The error family.

Everything this library raises on purpose derives from :class:`DurableError`. Most members are ordinary exceptions. Two
are not: after a :class:`ReplayDivergence` or a :class:`LeaseLost` the running body has no right to continue, and
``except Exception`` in a body must not hide them. That is why the base derives from :class:`BaseException`, and the
ordinary members add :class:`Exception`.

Every class carries a stable ``code``, which is also printed in the message and listed in the docs.
All of them can be pickled (Celery sends them between processes): the message is the one positional
argument, everything else is an attribute. An attribute with a default is set where there is something to say.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

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
    "EntryRefused",
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


#: Address of the manual. `pyproject.toml` and the README name it too.
MANUAL: Final = "https://celery-durable.readthedocs.io/en/stable"


def docs_url(code: str) -> str:
    """Where the manual explains a code, of an error or of a finding of the doctor."""
    return f"{MANUAL}/{'doctor' if code.startswith('CD9') else 'errors'}.html#{code.lower()}"


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

    @property
    def docs_url(self) -> str:
        """Where the manual explains this error's code."""
        return docs_url(self.code)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class ConfigurationError(DurableError, Exception):
    """A ``durable_*`` setting or the wiring of a task is wrong."""

    code = "CD001"
    setting: str | None = None  #: The setting whose value was refused; None where only the message says it.


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
    """The ``durable_id`` belongs to another call: of another task, or with other arguments. Nothing was sent."""

    code = "CD005"
    execution_id: str  #: The ``durable_id``.
    task: str  #: Name of the task whose execution has it.


class ExecutionParked(DurableError, Exception):
    """A handle was asked for the result of an execution that waits for an operator."""

    code = "CD006"
    execution_id: str  #: Which one.
    state: str  #: ``"ambiguous"`` or ``"quarantined"``.
    reason: str  #: Why it waits.


class ExecutionCancelled(DurableError, Exception):
    """A handle was asked for the result of an execution that was cancelled."""

    code = "CD007"
    execution_id: str  #: Which one.
    reason: str  #: The reason that was given for it; may be empty.


class ResultTimeout(DurableError, TimeoutError):
    """The execution had not ended within the caller's ``timeout``. It continues."""

    code = "CD008"
    execution_id: str  #: Which one.
    state: str  #: What it was then, such as ``"running"``.


class UnknownStep(DurableError, Exception):
    """The journal has no such step, or several of that name."""

    code = "CD009"
    execution_id: str  #: Whose journal.


class ReplayDivergence(DurableError):
    """The body asked for another step than its journal has at that position.

    A :class:`BaseException`: a body that catches ``Exception`` must not continue with a misread journal (G5). Its code
    says what differs; the codes start with ``CD1``.
    """

    code = "CD100"
    execution_id: str  #: Whose journal.
    place: str  #: The position, such as ``"3"`` or ``"4.0/1"``.

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.code = details.get("code", type(self).code)  # type: ignore[misc]


class FingerprintError(DurableError, Exception):
    """An argument of a step has no canonical form; give the step a ``fingerprint=``.

    Also an argument of a task that is called with a ``durable_id``.
    """

    code = "CD201"
    step: str | None = None  #: Name of the step, where it is an argument of one.
    task: str | None = None  #: Name of the task, where its call has a ``durable_id``.
    argument: str | None = None  #: Which argument, such as ``"argument 1"``.
    where: str | None = None  #: Which value, such as ``"argument 1 of step 'charge'"``.
    path: str | None = None  #: The part of it that was refused, such as ``"$.items[3].price"``.


class NestedStep(DurableError, Exception):
    """A step was called inside the operation of another step."""

    code = "CD202"


class ContextClosed(DurableError, Exception):
    """The durable context was used outside its body, or after its body had ended."""

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
    """A guarded step has an intent but no result, and its policy does not allow a guess."""

    code = "CD302"
    execution_id: str  #: Whose step.
    step_id: str  #: Its position, such as ``"3"``.
    step: str  #: Its name.
    key: bytes  #: Its idempotency key, 32 bytes.


class GuardConflict(DurableError, Exception):
    """A guarded step was called again with other arguments than those it already ran with. Nothing was called."""

    code = "CD303"
    execution_id: str  #: Whose step.
    step_id: str  #: Its position, such as ``"3"``.
    step: str  #: Its name.


class ResultLost(DurableError, Exception):
    """A guarded step, or one that can be undone, was done, but its result could not be stored.

    It is never run again.
    """

    code = "CD304"
    execution_id: str  #: Whose step.
    step_id: str  #: Its position, such as ``"3"``.
    step: str  #: Its name.


class PayloadError(DurableError, Exception):
    """A value cannot be encoded for the journal, or what the journal holds cannot be decoded."""

    code = "CD401"
    where: str | None = None  #: Which value, such as ``"the result of step 'charge'"``.
    path: str | None = None  #: The part of it that was refused, such as ``"$.items[3].price"``.
    kind: str | None = None  #: Dotted name of that part's type.


class PayloadTooLarge(PayloadError):
    """An encoded value is larger than ``durable_max_payload_bytes``."""

    code = "CD402"
    size: int | str  #: In bytes; a text where no more than the limit was counted.
    limit: int  #: In bytes.


class JournalCorrupted(PayloadError):
    """A journal row contradicts itself or its neighbours."""

    code = "CD403"


class ErrorPlaceholder(DurableError, Exception):
    """Stands for a recorded exception whose class can no longer be imported."""

    code = "CD404"
    original: str  #: Dotted name of that class.
    original_args: tuple[Any, ...]  #: The arguments of the exception, as they were recorded.
    original_text: str  #: Its text.


class JournalUnavailable(DurableError, Exception):
    """The journal's database did not answer within ``durable_ack_timeout``."""

    code = "CD501"


class LeaseLost(DurableError):
    """Another owner took the execution over; this one may neither commit nor start anything.

    A :class:`BaseException`: there is nothing a body could do about it (G3).
    """

    code = "CD502"
    state: str | None = None  #: What the execution is now, where nobody runs it.


class EntryRefused(DurableError, Exception):
    """The journal's database does not accept what the execution writes, though it accepts what others write.

    The execution is parked: what it has done so far is journaled.
    """

    code = "CD503"


class PromiseRejected(DurableError, Exception):
    """A promise was rejected."""

    code = "CD601"
    promise: str  #: Its name.
    promise_id: str  #: :attr:`Promise.id`.
    reason: str  #: The reason that was given, as a text.
    error: Exception | None  #: The exception that it was rejected with, if it was one; also the ``__cause__``.


class PromiseTimeout(DurableError, Exception):
    """A promise was not resolved in time: its ``timeout`` passed, or a heartbeat did not arrive."""

    code = "CD602"
    promise: str  #: Its name.
    promise_id: str  #: :attr:`Promise.id`.


class PromiseSettled(DurableError, Exception):
    """A promise can be settled once, and this one is already settled in another way."""

    code = "CD603"
    promise_id: str  #: :attr:`Promise.id`.
    state: str  #: ``"resolved"``, ``"rejected"``, ``"expired"`` or ``"cancelled"``.


class ChildFailed(DurableError, Exception):
    """A child task has failed."""

    code = "CD611"
    child: str  #: Its name: of the task, or the ``name=`` of the call.
    child_id: str  #: Its task id.
    reason: str  #: Why, as a text.
    error: Exception | None  #: The exception with which it failed, also the ``__cause__``; None where it did not.


class ChildCancelled(ChildFailed):
    """A child task was revoked or cancelled, or was no longer needed."""

    code = "CD612"


class ChildTimeout(ChildFailed):
    """A child task had not ended within its ``timeout``, and was cancelled."""

    code = "CD613"


class WrongToken(DurableError, Exception):
    """There is no promise with this id and token."""

    code = "CD604"
