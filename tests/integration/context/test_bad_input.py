"""What a program gets wrong is told when it is written, or else when it is run: where, what, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import (
    AmbiguityPolicyRequired,
    ConfigurationError,
    Effect,
    Intent,
    NestedStep,
    OnAmbiguous,
    StepDescriptor,
    guarded,
    step,
)
from celery_durable.store.records import State
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab

# -- guarded steps: the policy must be there before there is a crash ---------------------------------------------


@pytest.mark.parametrize("intent", [Intent.MONEY_MOVING, Intent.DESTRUCTIVE, Intent.SECURITY_RELEVANT, Intent.CUSTOM])
@pytest.mark.parametrize("build", [guarded, lambda intent: StepDescriptor.guarded("charge", intent)])
def test_a_guarded_step_without_a_policy_cannot_be_built(intent: Intent, build: Callable[..., Any]) -> None:
    with pytest.raises(AmbiguityPolicyRequired) as refused:
        build(intent)
    assert str(refused.value) == (
        f"[CD301] a guarded step with Intent.{intent.name} needs on_ambiguous=: after a crash between intent and "
        "result nobody knows whether the effect happened. Choose OnAmbiguous.RERUN (the remote side deduplicates on "
        "the idempotency key), OnAmbiguous.FAIL (an operator decides), OnAmbiguous.SKIP (assume it happened), or give "
        "a callable that asks the remote side."
    )


def test_what_only_costs_is_skipped_unless_it_is_said_otherwise(lab: Lab) -> None:
    mail = StepDescriptor.guarded("mail", Intent.COST_BEARING)
    op = lab.operation("mail", None, Crash())
    lab.crash(lambda ctx: ctx.step(mail, op))
    assert lab.run(lambda ctx: ctx.step(mail, op)) is None
    assert lab.ledger.count("mail") == 1


def test_guarded_as_a_word_alone_is_no_policy() -> None:
    with pytest.raises(AmbiguityPolicyRequired) as refused:
        step(effect=Effect.EXACTLY_ONCE_GUARDED, name="charge")(len)
    assert str(refused.value) == (
        "[CD301] step 'charge': Effect.EXACTLY_ONCE_GUARDED alone does not say why it is guarded nor what to do after "
        "a crash between intent and result; write effect=guarded(Intent...., on_ambiguous=...)."
    )


def charge(cents: int) -> str:
    """An operation that promises a value."""
    raise AssertionError("it ran")


NO_VALUE = (
    "[CD301] step 'charge' returns {}, but under OnAmbiguous.SKIP a crash leaves no value to return. Give "
    "assumed=<the value to continue with>, or choose OnAmbiguous.RERUN, OnAmbiguous.FAIL or a reconcile callable."
)


def test_a_value_that_skip_could_not_give_is_asked_for_where_the_step_is_written() -> None:
    with pytest.raises(AmbiguityPolicyRequired) as refused:
        step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.SKIP))(charge)
    assert str(refused.value) == NO_VALUE.format("str")


def test_or_where_it_is_called_inline_and_then_nothing_has_happened(lab: Lab) -> None:
    with pytest.raises(AmbiguityPolicyRequired) as refused:
        lab.run(lambda ctx: ctx.step(charging(OnAmbiguous.SKIP), charge, 5))
    assert str(refused.value) == NO_VALUE.format("str")
    assert (lab.state(), lab.entries()) == (State.FAILED, [])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: guarded("money"),  # type: ignore[arg-type]
            (
                "guarded() needs a member of Intent as its first argument, not 'money'; choose one of "
                "Intent.MONEY_MOVING, Intent.DESTRUCTIVE, Intent.SECURITY_RELEVANT, Intent.COST_BEARING, Intent.CUSTOM."
            ),
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous="fail"),  # type: ignore[arg-type]
            "on_ambiguous= takes a member of OnAmbiguous or a callable, not 'fail'.",
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL, assumed=1),
            (
                "assumed= is the value of a skipped step and has no meaning under another policy than "
                "OnAmbiguous.SKIP; remove one of the two."
            ),
        ),
        (
            lambda: guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL, definite="Declined"),  # type: ignore[arg-type]
            "definite= takes exception classes, not ('Declined',).",
        ),
        (
            lambda: step(effect="guarded", name="charge")(len),  # type: ignore[call-overload]
            "step 'charge': effect= takes a member of Effect or guarded(...), not 'guarded'.",
        ),
        (
            lambda: step(key="order", name="charge")(len),
            "step 'charge': key= belongs to guarded steps only; write effect=guarded(Intent...., ...).",
        ),
        (
            lambda: step(retry=3, name="charge")(len),  # type: ignore[call-overload]
            "step 'charge': retry= takes a Retry, not 3.",
        ),
        (
            lambda: step(fingerprint="id", name="charge")(len),  # type: ignore[call-overload]
            "step 'charge': fingerprint= cannot be 'id'.",
        ),
        (lambda: step(int), "@step decorates a function, not <class 'int'>."),
    ],
)
def test_options_that_make_no_sense_are_refused_when_the_step_is_built(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build()
    assert str(refused.value) == f"[CD001] {message}"


# -- steps in steps ---------------------------------------------------------------------------------------------


@step
def double(number: int) -> int:
    return 2 * number


NESTED = (
    "[CD202] step {} was used inside the operation of step 'outer'. A step cannot contain steps: call it from the "
    "task's body, or call the plain function (.operation of a @step)."
)


@pytest.mark.parametrize(
    ("inner", "name"),
    [(lambda ctx: ctx.step("inner", int), "'inner'"), (lambda ctx: double(2), "'double'")],
    ids=["inline", "decorated"],
)
def test_a_step_in_a_step_is_refused_and_the_outer_one_fails(lab: Lab, inner: Callable[..., Any], name: str) -> None:
    with pytest.raises(NestedStep) as nested:
        lab.run(lambda ctx: ctx.step("outer", lambda: inner(ctx)))
    assert str(nested.value) == NESTED.format(name)
    assert lab.entries() == []


def test_the_plain_function_of_a_step_may_be_called_in_another(lab: Lab) -> None:
    assert lab.run(lambda ctx: ctx.step("outer", lambda: double.operation(4))) == 8
    assert lab.entries() == ["0 RESULT outer"]


def test_a_scope_in_a_step_is_refused(lab: Lab) -> None:
    with pytest.raises(NestedStep) as nested:
        lab.run(lambda ctx: ctx.step("outer", lambda: ctx.parallel().__enter__()))
    assert str(nested.value) == NESTED.format("'parallel'")
