"""Threads of the library's own: native ones, which no signal disturbs; and what they share with greenlets."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
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


def _original(module: str, name: str) -> Any:
    """What the standard library has there, whatever gevent has put in its place."""
    gevent = sys.modules.get("gevent.monkey")
    return getattr(importlib.import_module(module), name) if gevent is None else gevent.get_original(module, name)


def native_thread(target: Callable[[Callable[[float], None]], None], name: str) -> None:
    """Run ``target(sleep)`` in a daemon thread of the operating system, whatever has been patched."""
    gevent = sys.modules.get("gevent.monkey")
    given = (_original("time", "sleep"),)
    with without_signals():
        if gevent is not None and gevent.is_module_patched("threading"):
            _original("_thread", "start_new_thread")(target, given)
        else:
            threading.Thread(target=target, args=given, name=name, daemon=True).start()


def close_at_once(descriptor: int) -> None:
    """Close a descriptor that nobody polls.

    The ``os.close`` of gevent's puts that off until its loop comes round, and meanwhile knows the number as one that is
    being closed. Another thread may get the number a moment before gevent forgets it, and could not close it then.
    """
    _original("os", "close")(descriptor)
