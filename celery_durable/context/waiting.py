"""What a body can wait for: the part of :class:`~celery_durable.DurableContext` that holds no worker."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import time
import weakref
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, overload

from celery_durable.common.arguments import Duration, check_name, milliseconds, moment
from celery_durable.common.coroutines import came_late, in_thread
from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError
from celery_durable.identity import promise_id, wait_print
from celery_durable.journal.entries import fold
from celery_durable.replay import divergence
from celery_durable.replay.leaving import Undoing, Waiting
from celery_durable.replay.pending import BrokenOff
from celery_durable.replay.scope import ScopeState
from celery_durable.steps.broken_off import until_broken_off
from celery_durable.steps.call import StepCall
from celery_durable.store.records import Entry, EntryKind, Journaled
from celery_durable.waits.held_coroutines import HeldCoroutines
from celery_durable.waits.promise import Promise, Timer
from celery_durable.waits.tokens import Tokens
from celery_durable.waits.wait import Came, First, Sleep, Station, Wait, read_timer, write_timer

from .base import BodyContext

__all__ = ["WaitingContext"]

T = TypeVar("T")


class WaitingContext(BodyContext):
    """Waiting in a body. In ``async def`` code the waits are awaited: ``await self.durable.sleep(5)``."""

    _tokens: Tokens
    #: Waits that an ``async def`` body asked for, and has not begun to await.
    _unawaited: dict[Station, None]
    #: Steps likewise, by their places.
    _unbegun: dict[str, tuple[Coroutine[Any, Any, Any], StepCall]]
    _held: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, HeldCoroutines]

    # -- time -----------------------------------------------------------------------------------------------

    def sleep(self, duration: Duration) -> Any:
        """Continue after ``duration``. The wait holds nothing: no worker, no message, no thread.

        Time runs from the first call, by the database's clock. A sleep that ended while no worker was there ends at
        once.

        :param duration: seconds, or a timedelta; 0 or more, and at most a hundred years.
        :returns: None; in ``async def`` code an awaitable.
        :raises ConfigurationError: for any other duration.
        """
        return self._wait(Sleep(delay_ms=milliseconds(duration, "sleep()")))

    def sleep_until(self, when: dt.datetime) -> Any:
        """Continue at a moment, by the database's clock; at once if it has passed.

        :param when: an aware datetime.
        :returns: as :meth:`sleep`.
        :raises ConfigurationError: for anything else.
        """
        return self._wait(Sleep(until_ms=moment(when, "sleep_until()")))

    def timer(
        self,
        duration: Duration | None = None,
        *,
        weeks: float | None = None,
        days: float | None = None,
        hours: float | None = None,
        minutes: float | None = None,
        seconds: float | None = None,
        until: dt.datetime | None = None,
    ) -> Timer:
        """Start a timer, for :meth:`select` or :meth:`wait`.

        :param duration: seconds, or a timedelta. Or give ``weeks``, ``days``, ``hours``, ``minutes`` and ``seconds``,
            which are added up.
        :param until: instead of a duration: an aware datetime, which may have passed.
        :raises ConfigurationError: for no duration, for several, or for one that :meth:`sleep` does not accept.
        """
        parts = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        said = {word: number for word, number in parts.items() if number is not None}
        if (duration is not None) + bool(said) + (until is not None) != 1:
            raise ConfigurationError(
                "timer() takes exactly one of: a duration, weeks= to seconds= (which are added up), or until=."
            )
        until_ms = None if until is None else moment(until, "timer(until=)")
        if said:
            try:
                duration = dt.timedelta(**said)
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigurationError(f"timer(): {error}; weeks= to seconds= are numbers.") from None
        delay_ms = 0 if duration is None else milliseconds(duration, "timer()")
        return self._set_timer(delay_ms, until_ms)

    # -- what others bring ----------------------------------------------------------------------------------

    def promise(self, name: str, *, timeout: Duration | None = None, heartbeat: Duration | None = None) -> Promise:
        """Create a promise: a value that somebody outside provides. It can be resolved from now on, even before the
        body waits for it.

        One commit. A plain call, in ``async def`` code too.

        :param name: its name in the journal and in errors, 1 to 200 characters; it need not be unique.
        :param timeout: seconds, or a timedelta, after which it expires; None: never.
        :param heartbeat: seconds, or a timedelta: the longest time until the first and between two calls of
            :func:`celery_durable.heartbeat`, after which it expires. None: no heartbeats are expected.
        :raises ConfigurationError: for a bad name or duration.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        check_name(name, "a promise's name")
        timeout_ms = None if timeout is None else milliseconds(timeout, "promise(timeout=)", least=1)
        heartbeat_ms = None if heartbeat is None else milliseconds(heartbeat, "promise(heartbeat=)", least=1)
        return self._make_promise(name, timeout_ms, heartbeat_ms)

    @overload
    def wait(self, source: Promise[T]) -> T: ...
    @overload
    def wait(self, source: Timer) -> Any: ...
    def wait(self, source: Promise | Timer) -> Any:
        """Wait until a promise is settled, or a timer is due. The wait holds nothing.

        :returns: what the promise was resolved with; in ``async def`` code an awaitable of it.
        :raises PromiseRejected: it was rejected.
        :raises PromiseTimeout: it has expired.
        :raises ConfigurationError: for anything but a promise or timer of a body.
        """
        self._check_source(source, "wait()")
        return self._wait(First({"": source}, keyed=False))

    def select(self, **sources: Promise | Timer) -> Any:
        """Wait for the first of several promises and timers. The journal records which one it was.

        The one that came earliest counts, whenever the body looks. The others stay as they are and can be waited for
        again.

        :param sources: promises and timers, each under a keyword of your choice.
        :returns: a :class:`Selected`, ``(key, value)``; in ``async def`` code an awaitable of it.
        :raises PromiseRejected, PromiseTimeout: the first one was a promise, and it was rejected or has expired.
        :raises ConfigurationError: without any source, and as :meth:`wait`.
        """
        if not sources:
            raise ConfigurationError("select() needs something to wait for: select(approval=promise, late=timer).")
        for key, source in sources.items():
            self._check_source(source, f"select({key}=)")
        return self._wait(First(sources, keyed=True))

    def _check_source(self, source: Any, what: str) -> None:
        if not isinstance(source, (Promise, Timer)):
            raise ConfigurationError(
                f"{what} takes a promise or a timer, made by promise() or timer() in this body, not {source!r}."
            )
        self._check_maker(source, what)

    def _check_maker(self, source: Promise | Timer, what: str) -> None:
        if source._maker != self._run.execution_id:
            # Its settlement would wake the other one, and this one never.
            raise ConfigurationError(
                f"{what}: {source!r} was made by execution {source._maker or '(none)'}, and execution "
                f"{self._run.execution_id} cannot wait for it. Make one in this body, and have whoever settles the "
                "other one settle this one too; or leave the waiting to a child task: call(task.s(...))."
            )

    # -- how a promise or timer comes to be -----------------------------------------------------------------

    def _place(self, kind: EntryKind, name: str, print_: bytes) -> tuple[ScopeState, int, list[Journaled] | None]:
        """Take a position; what the journal has there."""
        scope, position = self._next_place(name)
        rows = scope.cursor.take(position)
        found = divergence.check_wait(rows, self._run.execution_id, scope, position, kind, name, print_)
        if found is not None:
            raise self._run.standing.bar(found)
        if self._run.stopping and self._at_the_end(scope, rows):
            raise self._stop(scope)
        return scope, position, rows

    def _set_timer(self, delay_ms: int, until_ms: int | None) -> Timer:
        run, print_ = self._run, wait_print("timer")
        scope, position, rows = self._place(EntryKind.TIMER, "timer", print_)
        if rows is not None:
            timer = read_timer(run, rows[0])
            run.counters.replayed += 1
        else:
            timer = Timer(due=until_ms, delay_ms=delay_ms)
            payload = write_timer(run, delay_ms, until_ms)
            run.append(Entry(scope.path, position, 0, EntryKind.TIMER, None, "timer", print_, payload=payload))
        timer._place = scope.place(position)
        timer._maker = run.execution_id
        return timer

    def _make_promise(self, name: str, timeout_ms: int | None, heartbeat_ms: int | None) -> Promise:
        run = self._run
        scope, position, rows = self._place(EntryKind.PROMISE, name, wait_print("promise", name))
        number = scope.occurrence(wait_print("promise", name))
        known = promise_id(run.namespace, run.execution_id, scope.lane, name, number)
        lane = f"{scope.lane} {number}"
        if rows is not None:
            recorded = fold(rows)
            run.counters.replayed += 1
            where = f"the token of promise {name!r}"
            with run.reading(where):
                return self._promise(name, run.decode(recorded.payload, where), lane)
        reached("promise.before_create", run.execution_id, name)
        kept = run.earlier_promises().get(known)
        if kept is None:
            of = [scope.lane, name, number]
            kept = {
                "id": known,
                "of": of,
                "timeout": timeout_ms,
                "heartbeat": heartbeat_ms,
                **self._tokens.mint(known)[0],
            }
        promise = self._promise(name, kept, lane)
        payload = run.encode(kept, f"the token of promise {name!r}")
        entry = Entry(
            scope.path,
            position,
            0,
            EntryKind.PROMISE,
            None,
            name,
            wait_print("promise", name),
            payload=payload,
            promise=promise._row(),
        )
        run.append(entry)
        run.flush()
        reached("promise.after_create", run.execution_id, name)
        return promise

    def _promise(self, name: str, kept: Mapping[str, Any], lane: str) -> Promise:
        """
        :param kept: what the journal keeps of it. In a rerun that is another execution's, and what was given away.
        """
        tokens, known = self._tokens, kept["id"]
        again = lambda: tokens.again(known, kept)  # noqa: E731
        promise = Promise(
            name, known, again, kept.get("timeout"), kept.get("heartbeat"), lane=lane, row_id=kept.get("row")
        )
        promise._maker = self._run.execution_id
        return promise

    # -- how a wait goes ------------------------------------------------------------------------------------

    def _wait(self, wait: Wait) -> Any:
        """Wait at the next position: here, or in the coroutine that this returns in ``async def`` code."""
        scope, position = self._next_place(wait.name)
        station = Station(self._run, scope, position, wait)
        if self._in_coroutine():
            self._unawaited[station] = None
            return self._wait_async(station)
        station.take()
        looks = 0
        while True:
            if self._run.stopping and not station.decided:
                raise self._leave(scope, Undoing())
            answer = station.look()
            if isinstance(answer, Came):
                return self._deliver(answer)
            pause = station.pause(answer, looks)
            if pause is None:
                raise self._leave(scope, answer)
            time.sleep(pause)
            self._run.check()
            looks += 1

    async def _wait_async(self, station: Station) -> Any:
        self._unawaited.pop(station, None)
        held = self._coroutines()
        try:
            return await self._look_and_wait(station, held)
        except asyncio.CancelledError as error:
            if not held.closing:
                station.broken_off(error)
            raise

    async def _look_and_wait(self, station: Station, held: HeldCoroutines) -> Any:
        if not station.ready:
            with held.flight():
                await asyncio.to_thread(station.fetch)
        station.take()
        looks = 0
        while True:
            left: Waiting | Undoing = Undoing()
            pause = None
            with held.flight():
                if not (self._run.stopping or held.closing) or station.decided:
                    answer, cancelled = await in_thread(station.look)
                    if isinstance(answer, Came):
                        if isinstance(answer.error, BrokenOff):
                            if cancelled is None:
                                await until_broken_off(answer.error.error, stopping=self._run.stopping)
                        elif cancelled is not None:
                            came_late()
                        return self._deliver(answer)
                    if cancelled is not None:
                        raise cancelled
                    left = answer
                    pause = station.pause(answer, looks)
                if pause is not None:
                    await asyncio.sleep(pause)
                    self._run.check()
            if pause is None:
                await held.hold(station.scope, left)
            looks += 1

    def _deliver(self, came: Came) -> Any:
        if came.replayed:
            self._run.counters.replayed += 1
        if came.error is not None:
            self._run.check()
            raise came.error.error if isinstance(came.error, BrokenOff) else came.error
        return came.value

    def _coroutines(self) -> HeldCoroutines:
        """Where the coroutines of this event loop wait."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            held = self._held[loop] = HeldCoroutines(self._leave, self._awaits_more)
        return held

    def _check_awaited(self) -> None:
        """The body has returned.

        :raises ConfigurationError: it asked for a wait, or a step, and continued without it.
        """
        for later, call in self._unbegun.values():
            # One that was cancelled before it began is closed.
            if inspect.getcoroutinestate(later) == inspect.CORO_CREATED:
                later.close()
                raise ConfigurationError(
                    f"{call.where} of execution {self._run.execution_id} is a coroutine function, and was called but "
                    "never awaited, so it did not run. Write 'await' in front of the call, in an 'async def' body."
                )
        for station in self._unawaited:
            word = station.wait.word
            raise ConfigurationError(
                f"the {word} at position {station.place} of execution {self._run.execution_id} was asked for in 'async "
                f"def' code and never awaited, so the body did not wait. Write: await self.durable.{word}(...)"
            )
