"""Runs a coroutine to its end for a caller who is none."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["run_to_end"]


def run_to_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The value of a coroutine, in an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A coroutine called a task eagerly: its thread has a loop, which has to stand still meanwhile.
    with ThreadPoolExecutor(1, thread_name_prefix="durable-body") as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()
