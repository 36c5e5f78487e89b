"""What functions say they return, and whether SKIP could continue without it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from celery_durable.effects import UNSET, OnAmbiguous
from celery_durable.errors import AmbiguityPolicyRequired

from .descriptor import StepDescriptor

__all__ = ["check_assumed", "return_annotation"]


def check_assumed(descriptor: StepDescriptor, op: Callable[..., Any]) -> None:
    """Refuse SKIP for an operation that promises a value nobody can give after a crash.

    :raises AmbiguityPolicyRequired: names the step and the ways out.
    """
    guard = descriptor.guard
    if guard is None or guard.policy is not OnAmbiguous.SKIP or guard.assumed is not UNSET:
        return
    returns = return_annotation(op)
    if returns in (inspect.Signature.empty, None, type(None), Any):
        return
    shown = returns if isinstance(returns, str) else inspect.formatannotation(returns)
    raise AmbiguityPolicyRequired(
        f"step {descriptor.name!r} returns {shown}, but under OnAmbiguous.SKIP a crash leaves no value to return. Give "
        "assumed=<the value to continue with>, or choose OnAmbiguous.RERUN, OnAmbiguous.FAIL or a reconcile callable."
    )


def return_annotation(op: Callable[..., Any]) -> Any:
    target = inspect.unwrap(op)
    try:
        return get_type_hints(target).get("return", inspect.Signature.empty)
    except Exception:
        # A name that exists for type checkers only; the text of the annotation is all there is.
        text = getattr(target, "__annotations__", {}).get("return", inspect.Signature.empty)
        return None if text == "None" else text
