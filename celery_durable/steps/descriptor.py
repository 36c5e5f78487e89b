"""What a step is: its descriptor, and the record of a step that was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery_durable.common.arguments import check_name
from celery_durable.effects import (
    TRIES,
    UNSET,
    AnyTransactional,
    Effect,
    Giver,
    Guard,
    Intent,
    Isolation,
    OnAmbiguous,
    Policy,
    guarded,
    transactional,
)
from celery_durable.errors import AmbiguityPolicyRequired, ConfigurationError
from celery_durable.journal.entries import CODE_OF_EFFECT
from celery_durable.store.records import EffectCode

from .retry import Retry

__all__ = ["StepDescriptor", "StepRecord"]


@dataclass(frozen=True)
class StepDescriptor:
    """Names a step, and says what it means to run it again. Checked when it is built.

    :raises AmbiguityPolicyRequired: a guarded step without the policy that its intent needs.
    :raises ConfigurationError: for invalid values.
    """

    #: Its name in the journal: 1 to 200 characters. Another name is another step.
    name: str
    #: What it means to run it again.
    effect: Effect = Effect.IDEMPOTENT
    #: For guarded steps only, and required there.
    guard: Guard | None = None
    #: When the step is tried again after an exception; ``None``: never.
    retry: Retry | None = None
    #: ``fingerprint(*args, **kwargs)``: what identifies the call if the arguments have no canonical form.
    fingerprint: Callable[..., Any] | None = None
    #: Names a guarded operation for the whole application: a text, or ``key(*args, **kwargs)`` that returns one.
    key: str | Callable[..., str] | None = None
    #: For transactional steps only, and required there.
    transaction: AnyTransactional | None = None
    #: ``compensate(result, *args, **kwargs)``: undoes the step when the body fails or is cancelled.
    compensate: Callable[..., Any] | None = None
    #: How the journal stores the effect: asked for with every call.
    _code: EffectCode = field(init=False, repr=False, compare=False, default=EffectCode.IDEMPOTENT)
    #: Not every function will do: see the checks below.
    _particular: bool = field(init=False, repr=False, compare=False, default=False)
    #: What it has done must not be done again, not even after a divergence (G6).
    _lasting: bool = field(init=False, repr=False, compare=False, default=False)
    #: Equal calls are one operation, and the arguments tell which are equal.
    _by_arguments: bool = field(init=False, repr=False, compare=False, default=False)
    #: The journal knows of each try before its operation starts: it must not be repeated by mistake, or can be undone.
    _announced: bool = field(init=False, repr=False, compare=False, default=False)
    #: Its first run is one call of its operation, and one entry.
    _plain: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        check_name(self.name, "a step's name")
        if not isinstance(self.effect, Effect):
            raise ConfigurationError(
                f"step {self.name!r}: effect= takes a member of Effect or guarded(...), not {self.effect!r}."
            )
        is_guarded = self.effect is Effect.EXACTLY_ONCE_GUARDED
        if is_guarded and self.guard is None:
            raise AmbiguityPolicyRequired(
                f"step {self.name!r}: Effect.EXACTLY_ONCE_GUARDED alone does not say why it is guarded nor what to do "
                "after a crash between intent and result; write effect=guarded(Intent...., on_ambiguous=...)."
            )
        if not is_guarded and (self.guard is not None or self.key is not None):
            what = "guard=" if self.guard is not None else "key="
            raise ConfigurationError(
                f"step {self.name!r}: {what} belongs to guarded steps only; write effect=guarded(Intent...., ...)."
            )
        if (self.effect is Effect.TRANSACTIONAL) != (self.transaction is not None):
            raise ConfigurationError(
                f"step {self.name!r}: Effect.TRANSACTIONAL and transaction= belong together; write "
                "effect=transactional()."
            )
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise ConfigurationError(f"step {self.name!r}: retry= takes a Retry, not {self.retry!r}.")
        for option in ("fingerprint", "key", "compensate"):
            value = getattr(self, option)
            if value is not None and not callable(value) and not (option == "key" and isinstance(value, str) and value):
                raise ConfigurationError(f"step {self.name!r}: {option}= cannot be {value!r}.")
        object.__setattr__(self, "_code", CODE_OF_EFFECT[self.effect])
        assumes = self.guard is not None and self.guard.policy is OnAmbiguous.SKIP
        particular = assumes or self.compensate is not None or self.transaction is not None
        object.__setattr__(self, "_particular", particular)
        lasting = is_guarded or self.transaction is not None
        object.__setattr__(self, "_lasting", lasting)
        by_arguments = self.effect is Effect.IDEMPOTENT and self.fingerprint is None
        object.__setattr__(self, "_by_arguments", by_arguments)
        # Of a transactional one there is nothing to know: it is in the journal if, and only if, it is done.
        announced = is_guarded or (self.compensate is not None and self.transaction is None)
        object.__setattr__(self, "_announced", announced)
        object.__setattr__(self, "_plain", not (lasting or announced) and self.retry is None)

    @classmethod
    def idempotent(
        cls,
        name: str,
        *,
        retry: Retry | None = None,
        fingerprint: Callable[..., Any] | None = None,
        compensate: Callable[..., Any] | None = None,
    ) -> StepDescriptor:
        """A step that may run again without harm.

        :raises ConfigurationError: for invalid values.
        """
        return cls(name, Effect.IDEMPOTENT, None, retry, fingerprint, compensate=compensate)

    @classmethod
    def at_least_once(
        cls,
        name: str,
        *,
        retry: Retry | None = None,
        fingerprint: Callable[..., Any] | None = None,
        compensate: Callable[..., Any] | None = None,
    ) -> StepDescriptor:
        """A step whose repetition is tolerable.

        :raises ConfigurationError: for invalid values.
        """
        return cls(name, Effect.AT_LEAST_ONCE, None, retry, fingerprint, compensate=compensate)

    @classmethod
    def guarded(
        cls,
        name: str,
        intent: Intent,
        *,
        on_ambiguous: Policy | None = None,
        assumed: Any = UNSET,
        definite: tuple[type[BaseException], ...] | type[BaseException] = (),
        retry: Retry | None = None,
        fingerprint: Callable[..., Any] | None = None,
        key: str | Callable[..., str] | None = None,
        compensate: Callable[..., Any] | None = None,
    ) -> StepDescriptor:
        """A step that must not run twice; parameters and errors as in :func:`celery_durable.guarded`."""
        guard = guarded(intent, on_ambiguous=on_ambiguous, assumed=assumed, definite=definite)
        return cls(name, Effect.EXACTLY_ONCE_GUARDED, guard, retry, fingerprint, key, compensate=compensate)

    @classmethod
    def transactional(
        cls,
        name: str,
        *,
        session: Giver | None = None,
        isolation: Isolation | None = None,
        tries: int = TRIES,
        retry: Retry | None = None,
        fingerprint: Callable[..., Any] | None = None,
        compensate: Callable[..., Any] | None = None,
    ) -> StepDescriptor:
        """A step that writes to the journal's database; parameters and errors as in
        :func:`celery_durable.transactional`.
        """
        how = transactional(session=session, isolation=isolation, tries=tries)
        return cls(name, Effect.TRANSACTIONAL, None, retry, fingerprint, None, how, compensate)


class StepRecord(NamedTuple):
    """The outcome of a step, as ``step_recorded`` returns it."""

    #: Its position in the body.
    step_id: str
    #: Its name in the journal.
    name: str
    #: The idempotency key, 32 bytes.
    key: bytes
    #: What the operation returned, as read back from the journal.
    value: Any
    #: True if the value came from the journal, and the operation was not called now.
    replayed: bool
    #: True if SKIP assumed that the effect had happened.
    skipped: bool
    #: The number of the try that gave the value; 1 for the first.
    attempt: int
