"""What distinguishes the calls of steps: their fingerprints, and what their idempotency keys are made of."""

from __future__ import annotations

from typing import Any

from celery_durable.effects import Effect
from celery_durable.errors import ConfigurationError
from celery_durable.identity import fingerprint, fingerprint_of, global_key
from celery_durable.replay.scope import ScopeState

from .descriptor import StepDescriptor

__all__ = ["fingerprint_for", "naming"]


def fingerprint_for(descriptor: StepDescriptor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The fingerprint of a call of a step."""
    if descriptor.fingerprint is None:
        return fingerprint(descriptor.name, descriptor.effect._value_, args, kwargs)
    return fingerprint_of(descriptor.name, descriptor.effect.value, descriptor.fingerprint(*args, **kwargs))


def naming(
    descriptor: StepDescriptor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    print_: bytes,
    scope: ScopeState,
    namespace: str,
) -> tuple[bytes | None, int]:
    """What the idempotency key of a call of a step is made of: the application's own key, or the call's number among
    its equals, which is counted here.
    """
    if descriptor.key is not None:
        return global_key(namespace, _key_text(descriptor, args, kwargs)), 0
    # Equal idempotent calls are one operation; the others are told apart by their order.
    return None, 0 if descriptor.effect is Effect.IDEMPOTENT else scope.occurrence(print_)


def _key_text(descriptor: StepDescriptor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    key = descriptor.key
    text = key(*args, **kwargs) if callable(key) else key
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"step {descriptor.name!r}: key= must give a non-empty text, not {text!r}.")
    return text
