"""What a type checker knows of ``@step`` functions. Only mypy runs this file.

A wrong use has ``type: ignore`` with its code: should it become right, mypy says that the comment is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from typing_extensions import assert_type

from celery_durable import Effect, Intent, OnAmbiguous, Retry, Step, StepDescriptor, guarded, step


@step
def load(order_id: int, *, deep: bool = False) -> str:
    return f"{order_id} {deep}"


@step(
    name="charge",
    effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN),
    retry=Retry(max_attempts=3, on=(ConnectionError,)),
    key=lambda order_id, cents: f"order-{order_id}",
)
def charge(order_id: int, cents: int) -> bytes:
    return bytes(order_id + cents)


@step
async def fetch(url: str) -> list[int]:
    return [len(url)]


class Gateway:
    @step(fingerprint=lambda self, cents: cents)
    def quote(self, cents: int) -> float:
        return cents / 100


# -- signatures are kept ----------------------------------------------------------------------------------------

assert_type(load(1), str)
assert_type(load(order_id=1, deep=True), str)
assert_type(charge(1, cents=5), bytes)
assert_type(fetch("x"), Coroutine[Any, Any, list[int]])  # type: ignore[unused-coroutine]
assert_type(load.operation(1), str)
assert_type(load.descriptor, StepDescriptor)
assert_type(Gateway().quote(5), float)
assert_type(Gateway.quote(Gateway(), 5), float)
as_function: Callable[[int], str] = load
as_method: Callable[[int], float] = Gateway().quote

load("1")  # type: ignore[arg-type]
load()  # type: ignore[call-arg]
load(1, True)  # type: ignore[call-arg]
load(1, deep="yes")  # type: ignore[arg-type]
charge(1)  # type: ignore[call-arg]
Gateway().quote("5")  # type: ignore[arg-type]
wrong: Callable[[str], str] = load  # type: ignore[assignment]


async def main() -> None:
    assert_type(await fetch("x"), list[int])
    await fetch(1)  # type: ignore[arg-type]


# -- options ----------------------------------------------------------------------------------------------------

step(effect="guarded")  # type: ignore[call-overload]
step(effect=Effect.IDEMPOTENT, retry=3)  # type: ignore[call-overload]
step(key=3)  # type: ignore[call-overload]
step("name")  # type: ignore[call-overload]
StepDescriptor("name", retry=3)  # type: ignore[arg-type]
StepDescriptor("name", Effect.IDEMPOTENT).name = "other"  # type: ignore[misc]
StepDescriptor.idempotent("name", on_ambiguous=OnAmbiguous.FAIL)  # type: ignore[call-arg]
StepDescriptor.guarded("name")  # type: ignore[call-arg]

assert_type(StepDescriptor.idempotent("name"), StepDescriptor)
assert_type(StepDescriptor.at_least_once("name", retry=Retry()), StepDescriptor)
assert_type(StepDescriptor.guarded("name", Intent.COST_BEARING), StepDescriptor)


@step(effect=Effect.AT_LEAST_ONCE)
def untouched(text: str) -> None: ...


same: Step[[str], None] = untouched
