"""What a type checker knows of effects, policies and retries. Only mypy runs this file."""

from __future__ import annotations

from typing_extensions import assert_type

from celery_durable import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    AmbiguousEffect,
    DurableError,
    ErrorPlaceholder,
    Guard,
    Happened,
    Intent,
    OnAmbiguous,
    Retry,
    StepHandle,
    Verdict,
    current_step,
    guarded,
    step,
)


class Declined(Exception):
    pass


# -- reconcile callables ----------------------------------------------------------------------------------------


def ask(handle: StepHandle, order_id: int) -> Verdict:
    if handle.attempt > 3:
        return UNKNOWN
    return Happened(f"receipt {handle.idempotency_key.hex()}") if order_id else DID_NOT_HAPPEN


async def ask_later(handle: StepHandle, order_id: int) -> Verdict:
    return ask(handle, order_id)


def guesses(handle: StepHandle) -> Verdict:
    return True  # type: ignore[return-value]


def forgets(handle: StepHandle) -> Verdict:
    return OnAmbiguous.SKIP  # type: ignore[return-value]


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=ask, definite=Declined))
def charge(order_id: int) -> str:
    handle = current_step()
    assert_type(handle, StepHandle)
    assert_type(handle.idempotency_key, bytes)
    assert_type((handle.execution_id, handle.step_id, handle.name, handle.attempt), tuple[str, str, str, int])
    handle.attempt = 4  # type: ignore[misc]
    handle.idempotency_key = b""  # type: ignore[misc]
    return "receipt"


assert_type(Happened(3), Happened[int])
assert_type(Happened("x").value, str)
assert_type(guarded(Intent.CUSTOM, on_ambiguous=ask_later, definite=(Declined, ConnectionError)), Guard)
assert_type(guarded(Intent.COST_BEARING, assumed={"id": None}), Guard)

guarded()  # type: ignore[call-arg]
guarded("money")  # type: ignore[arg-type]
guarded(Intent.CUSTOM, OnAmbiguous.FAIL)  # type: ignore[call-arg]
guarded(Intent.CUSTOM, on_ambiguous="fail")  # type: ignore[arg-type]
guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL, definite=[Declined])  # type: ignore[arg-type]
guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL, definite=Declined())  # type: ignore[arg-type]


# -- retries ----------------------------------------------------------------------------------------------------

assert_type(Retry(), Retry)
assert_type(
    Retry(max_attempts=5, backoff=0.5, max_backoff=30, jitter=False, on=(OSError,), give_up_on=(TimeoutError,)), Retry
)
assert_type(Retry(on=OSError, give_up_on=TimeoutError), Retry)
assert_type(Retry().pause(1), float)
Retry(max_attempts="5")  # type: ignore[arg-type]
Retry(on=("OSError",))  # type: ignore[arg-type]
Retry(delay=3)  # type: ignore[call-arg]
Retry().backoff = 3  # type: ignore[misc]


# -- errors -----------------------------------------------------------------------------------------------------

try:
    charge(1)
except AmbiguousEffect as doubt:
    assert_type(doubt.message, str)
    assert_type(doubt.code, str)
except DurableError as error:
    assert_type(error.code, str)

everything: list[type[BaseException]] = [DurableError, ErrorPlaceholder]
ordinary: list[type[Exception]] = [AmbiguousEffect, ErrorPlaceholder]
not_ordinary: list[type[Exception]] = [DurableError]  # type: ignore[list-item]
