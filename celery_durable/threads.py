"""Threads of the library's own: native ones, which no signal disturbs; and what they share with greenlets."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["close_at_once", "is_patched", "native_thread", "without_signals"]

#: A thread that causes one of these itself must get it.
_ITS_OWN: Final = frozenset({"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP"})


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Threads that are started here get no signals; they go to the threads that the program knows of.

    A pool process keeps SIGTERM off its one thread while it writes its last word into the pool's shared queue. With
    another thread to take the signal, it would die there and then, and the queue's lock would be held for ever: no
    process of the pool would work again. And a signal that another thread takes interrupts no wait of the body.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = {s for s in signal.valid_signals() if getattr(s, "name", "") not in _ITS_OWN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_patched() -> bool:
    """Whether waiting for a socket must be left to gevent or eventlet, which have replaced the module."""
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    return (gevent is not None and gevent.is_module_patched("socket")) or (
        eventlet is not None and eventlet.is_monkey_patched("socket")
    )


class _Original:
    """The unpatched standard library, where gevent has patched it."""

    def __init__(self) -> None:
        gevent = sys.modules.get("gevent.monkey")
        get = gevent.get_original if gevent is not None and gevent.is_module_patched("threading") else None
        self.start: Any = get("_thread", "start_new_thread") if get else None
        self.sleep: Callable[[float], None] = get("time", "sleep") if get else time.sleep


def native_thread(target: Callable[[Callable[[float], None]], None], name: str) -> None:
    """Run ``target(sleep)`` in a daemon thread of the operating system, whatever has been patched."""
    original = _Original()
    with without_signals():
        if original.start is not None:
            original.start(target, (original.sleep,))
        else:
            threading.Thread(target=target, args=(original.sleep,), name=name, daemon=True).start()


def close_at_once(descriptor: int) -> None:
    """Close a descriptor that nobody polls.

    The ``os.close`` of gevent's puts that off until its loop comes round, and meanwhile knows the number as one that is
    being closed. Another thread may get the number a moment before gevent forgets it, and could not close it then.
    """
    gevent = sys.modules.get("gevent.monkey")
    (os.close if gevent is None else gevent.get_original("os", "close"))(descriptor)
