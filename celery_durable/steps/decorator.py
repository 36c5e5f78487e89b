"""The ``@step`` decorator."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from celery_durable.common.coroutines import is_coroutine_function
from celery_durable.effects import (
    AnyTransactional,
    DjangoTransactional,
    Effect,
    Guard,
    Transactional,
    check_transaction,
)
from celery_durable.errors import ConfigurationError

from .assumed import check_assumed, return_annotation
from .bodies import check_orphan, running
from .closures import warn_of_captured
from .current import active
from .descriptor import StepDescriptor
from .retry import Retry

__all__ = ["Step", "check_compensation", "describe", "return_types", "step"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


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


def return_types(name: str, module: str | None = None) -> list[Any]:
    """What the ``@step`` functions of this name say they return; those that say nothing are left out.

    An annotation that cannot be resolved is given as text.

    :param module: where there are several of the name, those of this module are meant.
    """
    named = [one for one in list(_all_steps) if one.descriptor.name == name]
    near = [one for one in named if one.operation.__module__ == module]
    found: list[Any] = []
    for one in near or named:
        returns = return_annotation(one.operation)
        if returns is not inspect.Signature.empty and returns not in found:
            found.append(returns)
    return found


#: Every step function of this process.
_all_steps: weakref.WeakSet[Step[Any, Any]] = weakref.WeakSet()


class Step(Generic[P, R]):
    """A function that is a step when a durable body calls it, and a plain function otherwise.

    Made by :func:`step`. Its signature is the function's; as a step it raises what :meth:`DurableContext.step` does.

    :param operation: the plain function, for calls that must not be steps.
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
            if running:
                check_orphan(self.descriptor)
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

    :param name: its name in the journal; default: the function's name. Renaming a step is a divergence.
    :param effect: a member of :class:`Effect`, :func:`guarded` or :func:`transactional`; idempotent by default.
    :param retry: when the step is tried again after an exception.
    :param fingerprint: called with the arguments; its value identifies the call instead of them.
    :param key: names a guarded operation for the whole application, so that two executions run it once.
    :param compensate: ``compensate(result, *args, **kwargs)`` undoes the step when the body fails or is cancelled; a
        plain function, or another step. It is a guarded step of its own, and survives crashes too. An intent is
        committed before the step itself starts, whatever its effect is.
    :raises AmbiguityPolicyRequired: a guarded step that does not say what to do in the ambiguous window.
    :raises ConfigurationError: for options that contradict each other.
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
        warn_of_captured(descriptor, op)
        return Step(op, descriptor)

    return decorate if function is None else decorate(function)
