"""A body ends when everything it started has ended: nothing completes unseen after its execution."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from celery_durable.steps.interruption import is_interruption

from .base import BodyContext

__all__ = ["to_its_end"]


async def to_its_end(context: BodyContext, body: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine body to its end. The steps of its other coroutines that are under way then are waited for; they
    begin no others.

    What ends the process waits for nobody: the lease is given back, and whoever takes over asks what became of them.
    """
    try:
        value = await body
    except GeneratorExit:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or not is_interruption(error):
            await context._coroutines().rest()
        raise
    await context._coroutines().rest()
    return value
