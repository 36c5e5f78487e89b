"""Which step is meant by ``step(what, function, ...)``: its name, its kind, and its function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from celery_durable.common.coroutines import is_coroutine_function
from celery_durable.effects import Effect, check_transaction, transactional
from celery_durable.errors import ConfigurationError

from .assumed import check_assumed
from .closures import warn_of_captured
from .decorator import Step, check_compensation
from .descriptor import StepDescriptor

__all__ = ["Described", "described", "described_transaction", "is_async", "only_named"]


class Described(NamedTuple):
    """A step that is about to be called."""

    descriptor: StepDescriptor
    #: Never a :class:`Step` itself.
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def described(what: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Described:
    """A name takes the place of a step function's own, and nothing else of it: its effect, its guard and whatever else
    its descriptor says are kept.

    :param what: a name or a :class:`StepDescriptor`.
    :raises ConfigurationError: where it is neither, there is no function, or a descriptor would take a guard away.
    :raises AmbiguityPolicyRequired: as for ``@step``.
    """
    if not isinstance(what, (str, StepDescriptor)):
        raise ConfigurationError(f"step() takes a name or a StepDescriptor first, not {what!r}.")
    own, op, args, kwargs = _unwrapped(op, args, kwargs)
    if isinstance(what, str):
        if own is not None:
            return Described(dataclasses.replace(own.descriptor, name=what), op, args, kwargs)
        descriptor = only_named(what)
    else:
        descriptor = what
        if own is not None:
            _check_kept(own.descriptor, descriptor)
    if type(op) is FunctionType and not descriptor._particular:
        if op.__closure__:
            warn_of_captured(descriptor, op)
        return Described(descriptor, op, args, kwargs)  # nothing can be wrong with the two
    if not callable(op):
        raise ConfigurationError(
            f"step {descriptor.name!r} needs a callable, not {op!r}; pass the function and its arguments: "
            "step(name, function, argument, ...)."
        )
    _check(descriptor, op)
    return Described(descriptor, op, args, kwargs)


def described_transaction(what: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Described:
    """The same of ``transaction(what, function, ...)``, or of ``transaction(function, ...)``, where ``what`` is None.

    :raises ConfigurationError: where it cannot be a transactional step.
    """
    if not callable(op):
        raise ConfigurationError(
            f"transaction() takes a function, perhaps after a name or a StepDescriptor, not {op!r}: "
            "transaction(function, argument, ...)."
        )
    own, op, args, kwargs = _unwrapped(op, args, kwargs)
    if isinstance(what, StepDescriptor):
        if what.transaction is None:
            raise ConfigurationError(
                f"step {what.name!r} is {what.effect.value}; transaction() takes StepDescriptor.transactional(...)."
            )
        descriptor = what
        if own is not None:
            _check_kept(own.descriptor, descriptor)
    elif own is not None:
        descriptor = dataclasses.replace(own.descriptor, name=what or own.descriptor.name)
        if descriptor.transaction is None:
            _check_kept(own.descriptor, StepDescriptor.transactional(descriptor.name))
            descriptor = dataclasses.replace(descriptor, effect=Effect.TRANSACTIONAL, transaction=transactional())
    else:
        name = str(what or getattr(op, "__name__", "<lambda>"))
        if name == "<lambda>":
            raise ConfigurationError(f"{op!r} has no name; give the step one: transaction('name', function, ...).")
        descriptor = StepDescriptor.transactional(name)
    check_transaction(descriptor.name, descriptor.transaction, op)
    return Described(descriptor, op, args, kwargs)


@functools.lru_cache(maxsize=1024)
def only_named(what: str) -> StepDescriptor:
    """The descriptor of a step that is only named: the same few come in every run."""
    return StepDescriptor(what)


def is_async(op: Any) -> bool:
    """Whether calling this, a step function or any other, gives something to be awaited."""
    _, op, _, _ = _unwrapped(op, (), {})
    return is_coroutine_function(op)


def _unwrapped(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Step[Any, Any] | None, Any, tuple[Any, ...], dict[str, Any]]:
    """The step function in this (itself, a method, or with arguments bound to it), and what is called for it."""
    inner = op
    while not isinstance(inner, Step):
        if isinstance(inner, functools.partial):
            args, kwargs = (*inner.args, *args), {**inner.keywords, **kwargs}
            inner = inner.func
        elif isinstance(inner, MethodType) and isinstance(inner.__func__, (Step, MethodType)):
            args = (inner.__self__, *args)
            inner = inner.__func__
        else:
            break
    return (inner, inner.operation, args, kwargs) if isinstance(inner, Step) else (None, op, args, kwargs)


def _check_kept(own: StepDescriptor, given: StepDescriptor) -> None:
    """A guard is not dropped in passing.

    :raises ConfigurationError: names both.
    """
    if own._lasting and own.effect is not given.effect:
        raise ConfigurationError(
            f"step {given.name!r} is {given.effect.value}, and the function that is given for it is the step "
            f"{own.name!r}, which is {own.effect.value}. Give a name alone, which keeps what the function says of "
            "itself, or its .operation, which is the plain function."
        )


def _check(descriptor: StepDescriptor, op: Callable[..., Any]) -> None:
    warn_of_captured(descriptor, op)
    check_assumed(descriptor, op)
    check_compensation(descriptor, op)
    check_transaction(descriptor.name, descriptor.transaction, op)
