"""The library's own threads: native ones, which no signal disturbs; and what they share with greenlets."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from .turns import Turn, Turns

__all__ = ["Bell", "Tended", "close_at_once", "is_patched", "native_thread", "without_signals"]

logger = logging.getLogger(__name__)

#: Seconds after which a thread that could not be started is tried again.
_AGAIN: Final = 1.0

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


def _home() -> int:
    """Where a thread that is started here will live."""
    gevent = sys.modules.get("gevent.monkey")
    greenlets = gevent is not None and gevent.is_module_patched("threading")
    return int(_original("_thread", "get_ident")()) if greenlets else 0


class Bell:
    """Wakes one thread that waits. Unlike the events of the standard library it is a single lock of C's: nobody who is
    thrown out of it leaves it locked.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """True when it rang."""
        return self._lock.acquire(timeout=seconds)


class Tended:
    """A daemon thread that is started again when it has ended, by whoever looks after it.

    :param target: is given what sleeps some seconds. It returns when there is nothing to do for it.
    :param needed: whether there is something to do for it, after all.
    :param native: a thread of the operating system, whatever has been patched.
    """

    def __init__(
        self,
        target: Callable[[Callable[[float], None]], None],
        name: str,
        *,
        needed: Callable[[], bool] = bool,
        native: bool = False,
    ) -> None:
        self._target = target
        self._needed = needed
        self._name = name
        self._native = native
        self._home = _home()
        self._starting = Turns()
        self._alive = False
        self._failed = 0.0
        #: It is no longer started, and ends when it looks here.
        self.ended = False

    def end(self) -> None:
        """It is needed no more."""
        self.ended = True

    def ensure(self) -> bool:
        """Start it unless it lives; False where that is impossible at the moment. Never raises."""
        if self._alive:
            return True
        if self.ended or (self._failed and time.monotonic() - self._failed < _AGAIN) or not self._is_at_home():
            return False
        turn = Turn()
        try:
            if self._starting.take(turn) and not self._alive:
                self._begin()
        # "can't start new thread": the work is done by others meanwhile, as far as they can.
        except (RuntimeError, MemoryError) as error:
            self._failed = time.monotonic()
            logger.error("the thread %s could not be started; it is tried again: %s", self._name, error)
        finally:
            turn.over = True
        return self._alive

    def _is_at_home(self) -> bool:
        """Where greenlets are threads, they live in the native thread in which they were started."""
        return self._native or self._home == _home()

    def _begin(self) -> None:
        """Start it, or not at all: what is thrown into a body that comes by leaves none that only seems to live."""
        life = _original("_thread", "allocate_lock")()
        try:
            self._alive = True
            self._start(life)
        except BaseException:
            # Whoever takes its life first: the thread, which lives then, or we, and then it has none.
            if life.acquire(False):
                self._alive = False
            raise

    def _start(self, life: Any) -> None:
        run = functools.partial(self._run, life)
        if self._native:
            native_thread(run, self._name)
            return
        with without_signals():
            threading.Thread(target=run, args=(time.sleep,), name=self._name, daemon=True).start()

    def _run(self, life: Any, sleep: Callable[[float], None]) -> None:
        if not life.acquire(False):
            return
        try:
            self._target(sleep)
        except BaseException as error:
            self._alive = False
            logger.error("the thread %s has died and is restarted", self._name, exc_info=error)
            return
        # In this order: who has something to do says so first, and then looks whether it lives.
        self._alive = False
        if self._needed():
            self.ensure()


def close_at_once(descriptor: int) -> None:
    """Close a descriptor that nobody polls.

    The ``os.close`` of gevent's puts that off until its loop comes round, and meanwhile knows the number as one that is
    being closed. Another thread may get the number a moment before gevent forgets it, and could not close it then.
    """
    _original("os", "close")(descriptor)
