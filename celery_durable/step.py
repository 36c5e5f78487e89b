"""What a step is: its descriptor, the ``@step`` decorator, and the record of one that was done."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, TypeVar, get_type_hints, overload

from .coroutines import is_coroutine_function
from .current import active
from .effects import UNSET, Effect, Guard, Intent, OnAmbiguous, Policy, guarded
from .errors import AmbiguityPolicyRequired, ConfigurationError
from .replay import CODE_OF_EFFECT
from .retry import Retry
from .store.records import EffectCode
from .transactional import TRIES, AnyTransactional, DjangoTransactional, Giver, Isolation, Transactional, transactional
from .transactional import check_operation as check_transaction

__all__ = ["Step", "StepDescriptor", "StepRecord", "check_name", "describe", "return_types", "step"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

#: Names longer than this do not fit the journal's column on every database.
_LONGEST_NAME: Final = 200


@dataclass(frozen=True)
class StepDescriptor:
    """Names a step and says what running it again would mean. Checked when it is built.

    :raises AmbiguityPolicyRequired: a guarded step without the policy that its intent needs.
    :raises ConfigurationError: values that make no sense.
    """

    #: What the journal calls the step: 1 to 200 characters. Another name is another step.
    name: str
    #: What running it again would mean.
    effect: Effect = Effect.IDEMPOTENT
    #: Only, and always, for guarded steps.
    guard: Guard | None = None
    #: How the step answers exceptions; ``None``: not at all.
    retry: Retry | None = None
    #: ``fingerprint(*args, **kwargs)``: what identifies the call where the arguments have no canonical form.
    fingerprint: Callable[..., Any] | None = None
    #: Names a guarded operation for the whole application: a text, or ``key(*args, **kwargs)`` that returns one.
    key: str | Callable[..., str] | None = None
    #: Only, and always, for transactional steps.
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
        object.__setattr__(self, "_plain", not lasting and self.retry is None)

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

        :raises ConfigurationError: values that make no sense.
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

        :raises ConfigurationError: values that make no sense.
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


def check_name(name: Any, what: str) -> None:
    """Refuse what the journal cannot take as a name.

    :raises ConfigurationError: says ``what`` the name should be.
    """
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not _is_storable(name):
        raise ConfigurationError(f"{what} is a text of 1 to {_LONGEST_NAME} characters, not {name!r}.")


def _is_storable(text: str) -> bool:
    """PostgreSQL stores no NUL, and no database half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class StepRecord(NamedTuple):
    """What became of a step: the answer of ``step_recorded``."""

    #: Where it stands in the body.
    step_id: str
    #: What the journal calls it.
    name: str
    #: The idempotency key, 32 bytes.
    key: bytes
    #: What the operation returned, as the journal gives it back.
    value: Any
    #: True when the operation was not called now.
    replayed: bool
    #: True when SKIP assumed that the effect had happened.
    skipped: bool
    #: The try that brought the value; 1 for the first.
    attempt: int


def check_assumed(descriptor: StepDescriptor, op: Callable[..., Any]) -> None:
    """Refuse SKIP for an operation that promises a value nobody can give after a crash.

    :raises AmbiguityPolicyRequired: names the step and the ways out.
    """
    guard = descriptor.guard
    if guard is None or guard.policy is not OnAmbiguous.SKIP or guard.assumed is not UNSET:
        return
    returns = _return_annotation(op)
    if returns in (inspect.Signature.empty, None, type(None), Any):
        return
    shown = returns if isinstance(returns, str) else inspect.formatannotation(returns)
    raise AmbiguityPolicyRequired(
        f"step {descriptor.name!r} returns {shown}, but under OnAmbiguous.SKIP a crash leaves no value to return. Give "
        "assumed=<the value to go on with>, or choose OnAmbiguous.RERUN, OnAmbiguous.FAIL or a reconcile callable."
    )


def check_compensation(descriptor: StepDescriptor, operation: Callable[..., Any]) -> None:
    """Refuse a compensation that could not be called, when it is not needed yet.

    :raises ConfigurationError: names the step.
    """
    compensate = descriptor.compensate
    if compensate is None:
        return
    called = compensate.operation if isinstance(compensate, Step) else compensate
    try:
        theirs, ours = inspect.signature(called), inspect.signature(operation)
    except (TypeError, ValueError):
        return
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in ours.parameters.values()):
        return
    positional = [p for p in ours.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keywords = {p.name: None for p in ours.parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    try:
        theirs.bind(None, *required, **keywords)
    except TypeError as error:
        raise ConfigurationError(
            f"step {descriptor.name!r}: compensate= is called with the step's result and its own arguments, which "
            f"{getattr(called, '__name__', called)}{theirs} does not take: {error}."
        ) from None


def _return_annotation(op: Callable[..., Any]) -> Any:
    target = inspect.unwrap(op)
    try:
        return get_type_hints(target).get("return", inspect.Signature.empty)
    except Exception:
        # A name that exists for type checkers only; the text of the annotation is all there is.
        text = getattr(target, "__annotations__", {}).get("return", inspect.Signature.empty)
        return None if text == "None" else text


def return_types(name: str, module: str | None = None) -> list[Any]:
    """What the ``@step`` functions of this name say they return; those that say nothing are left out.

    An annotation that cannot be resolved is given as text.

    :param module: where there are several of the name, those of this module are meant.
    """
    named = [one for one in list(_all_steps) if one.descriptor.name == name]
    near = [one for one in named if one.operation.__module__ == module]
    found: list[Any] = []
    for one in near or named:
        returns = _return_annotation(one.operation)
        if returns is not inspect.Signature.empty and returns not in found:
            found.append(returns)
    return found


#: Every step function of this process.
_all_steps: weakref.WeakSet[Step[Any, Any]] = weakref.WeakSet()


class Step(Generic[P, R]):
    """A function that is a step when a durable body calls it, and itself when anybody else does.

    Made by :func:`step`. Its signature is the function's; as a step it raises what :meth:`DurableContext.step` does.

    :param operation: the function itself, for calls that are to be no step anywhere.
    :param descriptor: what kind of step it is.
    """

    def __init__(self, operation: Callable[P, R], descriptor: StepDescriptor) -> None:
        functools.update_wrapper(self, operation)
        self.operation = operation
        self.descriptor = descriptor
        self.is_async = is_coroutine_function(operation)
        _all_steps.add(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        here = active.get()
        if here is None:
            return self.operation(*args, **kwargs)
        return here.context._call(here.scope, self.descriptor, self.operation, args, kwargs, self.is_async)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> Step[P, R]: ...

    @overload
    def __get__(self: Step[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Callable[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<step {self.descriptor.name!r} ({self.descriptor.effect.value})>"


def describe(
    name: str,
    effect: Effect | Guard | AnyTransactional,
    *,
    retry: Retry | None = None,
    fingerprint: Callable[..., Any] | None = None,
    key: str | Callable[..., str] | None = None,
    compensate: Callable[..., Any] | None = None,
) -> StepDescriptor:
    """A descriptor from what users write as ``effect=``: a member of Effect, ``guarded(...)`` or
    ``transactional(...)``.
    """
    if isinstance(effect, (Transactional, DjangoTransactional)):
        return StepDescriptor(name, Effect.TRANSACTIONAL, None, retry, fingerprint, key, effect, compensate)
    if isinstance(effect, Guard):
        return StepDescriptor(name, Effect.EXACTLY_ONCE_GUARDED, effect, retry, fingerprint, key, compensate=compensate)
    return StepDescriptor(name, effect, None, retry, fingerprint, key, compensate=compensate)


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(
    *,
    name: str | None = None,
    effect: DjangoTransactional,
    retry: Retry | None = None,
    fingerprint: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Step[P, R]]: ...


@overload
def step(
    *,
    name: str | None = None,
    effect: Transactional,
    retry: Retry | None = None,
    fingerprint: Callable[..., Any] | None = None,
) -> Callable[[Callable[Concatenate[Any, P], R]], Step[P, R]]: ...


@overload
def step(
    *,
    name: str | None = None,
    effect: Effect | Guard = Effect.IDEMPOTENT,
    retry: Retry | None = None,
    fingerprint: Callable[..., Any] | None = None,
    key: str | Callable[..., str] | None = None,
    compensate: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Step[P, R]]: ...


def step(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect | Guard | AnyTransactional = Effect.IDEMPOTENT,
    retry: Retry | None = None,
    fingerprint: Callable[..., Any] | None = None,
    key: str | Callable[..., str] | None = None,
    compensate: Callable[..., Any] | None = None,
) -> Any:
    """Make a function a step: ``@step`` or ``@step(effect=..., retry=...)``.

    :param name: what the journal calls it; default is the function's name. Renaming a step is a divergence.
    :param effect: a member of :class:`Effect`, :func:`guarded` or :func:`transactional`; idempotent by default.
    :param retry: how the step answers exceptions.
    :param fingerprint: called with the arguments; its value identifies the call in their stead.
    :param key: names a guarded operation for the whole application, so that two executions fire it once.
    :param compensate: ``compensate(result, *args, **kwargs)`` undoes the step when the body fails or is cancelled; a
        plain function, or another step. It is a guarded step of its own, and survives crashes too.
    :raises AmbiguityPolicyRequired: a guarded step that does not say what to do in the ambiguous window.
    :raises ConfigurationError: options that make no sense.
    """

    def decorate(op: Any) -> Step[Any, Any]:
        if not callable(op) or isinstance(op, type):
            raise ConfigurationError(f"@step decorates a function, not {op!r}.")
        descriptor = describe(
            str(name or getattr(op, "__name__", type(op).__name__)),
            effect,
            retry=retry,
            fingerprint=fingerprint,
            key=key,
            compensate=compensate,
        )
        check_assumed(descriptor, op)
        check_transaction(descriptor.name, descriptor.transaction, op)
        check_compensation(descriptor, op)
        return Step(op, descriptor)

    return decorate if function is None else decorate(function)
