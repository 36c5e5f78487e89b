"""What is refused when a step is built, and with which words: nothing of it may wait for a crash to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import (
    AmbiguityPolicyRequired,
    ConfigurationError,
    DurableError,
    Effect,
    Intent,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    guarded,
    step,
)
from celery_durable.effects import UNSET

FAIL, SKIP = OnAmbiguous.FAIL, OnAmbiguous.SKIP
INTENTS = "Intent.MONEY_MOVING, Intent.DESTRUCTIVE, Intent.SECURITY_RELEVANT, Intent.COST_BEARING, Intent.CUSTOM"


def returns(annotation: Any) -> Callable[..., Any]:
    def operation() -> Any: ...

    operation.__annotations__["return"] = annotation
    return operation


def says(build: Callable[[], Any]) -> tuple[type[DurableError], str]:
    with pytest.raises(DurableError) as caught:
        build()
    return type(caught.value), caught.value.message


NEEDS_POLICY = (
    "a guarded step with Intent.{} needs on_ambiguous=: after a crash between intent and result nobody knows whether "
    "the effect happened. Choose OnAmbiguous.RERUN (the remote side deduplicates on the idempotency key), "
    "OnAmbiguous.FAIL (an operator decides), OnAmbiguous.SKIP (assume it happened), or give a callable that asks the "
    "remote side."
)
NO_POLICY = (
    "step 'charge': Effect.EXACTLY_ONCE_GUARDED alone does not say why it is guarded nor what to do after a crash "
    "between intent and result; write effect=guarded(Intent...., on_ambiguous=...)."
)
NO_SKIP = (
    "assumed= is the value of a skipped step and has no meaning under another policy than OnAmbiguous.SKIP; remove one "
    "of the two."
)


# -- the ambiguity rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("intent", [intent for intent in Intent if intent is not Intent.COST_BEARING])
@pytest.mark.parametrize(
    "build",
    [
        guarded,
        lambda intent: StepDescriptor.guarded("charge", intent),
        lambda intent: step(effect=guarded(intent))(print),
    ],
    ids=["guarded", "descriptor", "decorator"],
)
def test_what_can_do_harm_needs_a_policy(intent: Intent, build: Callable[[Intent], Any]) -> None:
    assert says(lambda: build(intent)) == (
        AmbiguityPolicyRequired,
        NEEDS_POLICY.format(intent.name),
    )


def test_what_only_costs_is_skipped_by_default() -> None:
    assert guarded(Intent.COST_BEARING).policy is SKIP
    assert guarded(Intent.COST_BEARING, on_ambiguous=FAIL).policy is FAIL
    assert guarded(Intent.COST_BEARING).assumed is UNSET


ASSUMED = (
    "step 'send' returns {}, but under OnAmbiguous.SKIP a crash leaves no value to return. Give assumed=<the value "
    "to continue with>, or choose OnAmbiguous.RERUN, OnAmbiguous.FAIL or a reconcile callable."
)


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [(int, "int"), (int | None, "int | None"), ("Unimported", "Unimported"), (list[str], "list[str]")],
)
def test_a_skipped_step_that_promises_a_value_needs_one(annotation: Any, shown: str) -> None:
    build = step(name="send", effect=guarded(Intent.COST_BEARING))
    assert says(lambda: build(returns(annotation))) == (AmbiguityPolicyRequired, ASSUMED.format(shown))
    # With a value, or under another policy, it is as good as any.
    step(effect=guarded(Intent.COST_BEARING, assumed=None))(returns(annotation))
    step(effect=guarded(Intent.COST_BEARING, on_ambiguous=FAIL))(returns(annotation))


@pytest.mark.parametrize("annotation", [None, type(None), "None", Any])
def test_a_skipped_step_that_promises_nothing_needs_none(annotation: Any) -> None:
    step(effect=guarded(Intent.COST_BEARING))(returns(annotation))


def test_nor_does_one_that_says_nothing() -> None:
    step(effect=guarded(Intent.COST_BEARING))(lambda: None)


# -- values that make no sense ----------------------------------------------------------------------------------

GUARD = guarded(Intent.CUSTOM, on_ambiguous=FAIL)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: guarded("money"),  # type: ignore[arg-type]
            f"guarded() needs a member of Intent as its first argument, not 'money'; choose one of {INTENTS}.",
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous="skip"),  # type: ignore[arg-type]
            "on_ambiguous= takes a member of OnAmbiguous or a callable, not 'skip'.",
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous=FAIL, assumed=3),
            NO_SKIP,
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous=FAIL, definite=(3,)),  # type: ignore[arg-type]
            "definite= takes exception classes, not (3,).",
        ),
        (
            lambda: StepDescriptor("charge", "guarded"),  # type: ignore[arg-type]
            "step 'charge': effect= takes a member of Effect or guarded(...), not 'guarded'.",
        ),
        (
            lambda: StepDescriptor("charge", guard=GUARD),
            "step 'charge': guard= belongs to guarded steps only; write effect=guarded(Intent...., ...).",
        ),
        (
            lambda: StepDescriptor("charge", key="order"),
            "step 'charge': key= belongs to guarded steps only; write effect=guarded(Intent...., ...).",
        ),
        (
            lambda: StepDescriptor("charge", retry=3),  # type: ignore[arg-type]
            "step 'charge': retry= takes a Retry, not 3.",
        ),
        (
            lambda: StepDescriptor("charge", fingerprint="order"),  # type: ignore[arg-type]
            "step 'charge': fingerprint= cannot be 'order'.",
        ),
        (
            lambda: StepDescriptor.guarded("charge", Intent.CUSTOM, on_ambiguous=FAIL, key=""),
            "step 'charge': key= cannot be ''.",
        ),
        (lambda: step(int), "@step decorates a function, not <class 'int'>."),
        (lambda: step("charge"), "@step decorates a function, not 'charge'."),  # type: ignore[call-overload]
        (lambda: Retry(max_attempts=0), "Retry(max_attempts=0): at least one try is needed."),
        (lambda: Retry(backoff=-1), "Retry: backoff= and max_backoff= are seconds, 0 or more."),
        (lambda: Retry(max_backoff=-1), "Retry: backoff= and max_backoff= are seconds, 0 or more."),
        (
            lambda: Retry(on=("OSError",)),  # type: ignore[arg-type]
            "Retry: on= takes exception classes, not ('OSError',).",
        ),
        (
            lambda: Retry(give_up_on=(KeyboardInterrupt,)),  # type: ignore[arg-type]
            "Retry: give_up_on= takes exception classes, not (<class 'KeyboardInterrupt'>,).",
        ),
    ],
)
def test_it_is_refused_with_the_name_of_the_option(build: Callable[[], Any], message: str) -> None:
    assert says(build) == (ConfigurationError, message)


def test_the_effect_alone_does_not_say_why_it_is_guarded() -> None:
    build = says(lambda: StepDescriptor("charge", Effect.EXACTLY_ONCE_GUARDED))
    assert build == (AmbiguityPolicyRequired, NO_POLICY)


def test_one_exception_class_does_not_need_a_tuple() -> None:
    assert guarded(Intent.CUSTOM, on_ambiguous=FAIL, definite=OSError).definite == (OSError,)
    assert Retry(on=OSError).on == (OSError,)
