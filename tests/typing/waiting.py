"""What type checkers know of promises, of timers and of waiting for them. Only mypy and pyright read this file.

A promise is of the type that the body says: what resolves it comes from outside.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple

from typing_extensions import assert_type

from celery_durable import DurableContext, Promise, PromiseRejected, Selected, Timer


class Decision(NamedTuple):
    by: str
    granted: bool


def body(ctx: DurableContext) -> bool:
    approval: Promise[Decision] = ctx.promise("approval", timeout=dt.timedelta(days=3))
    assert_type((approval.name, approval.id, approval.token), tuple[str, str, str])
    decision = ctx.wait(approval)
    assert_type(decision, Decision)
    decision.granted = True  # type: ignore[misc]
    print(decision.reason)  # type: ignore[attr-defined]
    count: int = ctx.wait(approval)  # type: ignore[assignment]
    return decision.granted and bool(count)


def without_a_type(ctx: DurableContext, approval: Promise, late: Timer, either: Promise[str] | Timer) -> Any:
    assert_type(ctx.promise("approval"), Promise)
    assert_type(ctx.promise("approval"), Promise[Any])
    assert_type(ctx.wait(approval), Any)
    assert_type(ctx.wait(late), Any)
    decision: Decision = ctx.wait(approval)
    ctx.wait(either)
    ctx.wait("approval")  # type: ignore[call-overload]
    ctx.promise("approval", heartbeat="1 s")  # type: ignore[arg-type]
    try:
        return ctx.wait(approval)
    except PromiseRejected as error:
        return error.reason + decision.by


def several(ctx: DurableContext, one: Promise[Decision], other: Promise) -> str:
    first: Selected = ctx.select(one=one, other=other, late=ctx.timer(hours=1))
    assert_type(first.key, str)
    assert_type(first.value, Any)
    ctx.select(one="approval")  # type: ignore[arg-type]
    listed: list[Promise[Any]] = [one, other]
    wider: Promise[tuple[str, bool]] = one
    narrower: Promise[str] = one  # type: ignore[assignment]
    return f"{first.key} {len(listed)} {wider.name} {narrower.name}"


async def coroutines(ctx: DurableContext) -> None:
    """There `wait()` returns an awaitable, and a promise with a type denies it: the value says its type instead."""
    approval = ctx.promise("approval")
    decision: Decision = await ctx.wait(approval)
    assert_type(decision, Decision)
    await ctx.wait(ctx.timer(minutes=3))
    await ctx.sleep(1)
