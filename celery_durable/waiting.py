"""What a body can wait for: the part of :class:`~celery_durable.DurableContext` that holds no worker."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import divergence
from .control import Waiting
from .durations import Duration, milliseconds, moment
from .errors import ConfigurationError
from .faults import reached
from .identity import promise_id, wait_print
from .parking import Parking
from .promise import Promise, Timer
from .replay import fold
from .step import check_name
from .store.records import Entry, EntryKind, Journaled
from .waits import Came, First, Sleep, Station, Wait, read_timer, write_timer

if TYPE_CHECKING:
    from .run import Run
    from .scope import ScopeState

__all__ = ["WaitingContext"]


class WaitingContext:
    """Waiting, for a body that runs. In ``async def`` code the waits are awaited: ``await ctx.sleep(5)``."""

    _run: Run
    #: The event loop in which a plain body was called, whose coroutines are not the body's.
    _outer_loop: asyncio.AbstractEventLoop | None
    #: Waits that an ``async def`` body asked for, and has not begun to await.
    _unawaited: dict[Station, None]
    _parkings: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Parking]

    if TYPE_CHECKING:

        def _here(self) -> ScopeState: ...
        def _check(self, name: str = "") -> None: ...
        def _stop_at_the_end(self, scope: ScopeState, rows: list[Journaled] | None) -> None: ...

    # -- time -----------------------------------------------------------------------------------------------

    def sleep(self, duration: Duration) -> Any:
        """Go on after ``duration``. Nothing is held meanwhile: no worker, no message, no thread.

        Time runs from the first call, by the database's clock. What ended while nobody was there to go on ends at
        once.

        :param duration: seconds, or a timedelta; 0 or more, and at most a hundred years.
        :returns: None; in ``async def`` code an awaitable.
        :raises ConfigurationError: for what is no such duration.
        """
        return self._wait(Sleep(delay_ms=milliseconds(duration, "sleep()")))

    def sleep_until(self, when: dt.datetime) -> Any:
        """Go on at a moment, by the database's clock; at once where it has passed.

        :param when: an aware datetime.
        :returns: as :meth:`sleep`.
        :raises ConfigurationError: for what is none.
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
        """Set a timer, for :meth:`select` or :meth:`wait`. It runs from now on.

        :param duration: seconds, or a timedelta; or say it by ``weeks``, ``days``, ``hours``, ``minutes`` and
            ``seconds``, which are added up.
        :param until: in place of a duration: an aware datetime, which may have passed.
        :raises ConfigurationError: for no duration, for several, or for one that :meth:`sleep` would not take.
        """
        parts = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        said = {word: number for word, number in parts.items() if number is not None}
        if (duration is not None) + bool(said) + (until is not None) != 1:
            raise ConfigurationError("timer() takes one of: a duration, weeks= to seconds= in sum, until=.")
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
        """Something that somebody outside is to bring. It can be kept from now on, also before it is waited for.

        One commit. A plain call, in ``async def`` code too.

        :param name: what the journal and errors call it, 1 to 200 characters; it need not be unique.
        :param timeout: seconds, or a timedelta, after which it has expired; None for never.
        :param heartbeat: longest time between two signs of life (:func:`celery_durable.heartbeat`), the first counted
            from now; after that it has expired. None: no signs are expected.
        :raises ConfigurationError: for a bad name or duration.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        check_name(name, "a promise's name")
        timeout_ms = None if timeout is None else milliseconds(timeout, "promise(timeout=)", least=1)
        heartbeat_ms = None if heartbeat is None else milliseconds(heartbeat, "promise(heartbeat=)", least=1)
        return self._make_promise(name, timeout_ms, heartbeat_ms)

    def wait(self, source: Promise | Timer) -> Any:
        """Go on when a promise is kept, or a timer is due. Nothing is held meanwhile.

        :returns: what the promise was resolved with; in ``async def`` code an awaitable of it.
        :raises PromiseRejected: it was rejected.
        :raises PromiseTimeout: it has expired.
        :raises ConfigurationError: for anything but a promise or timer of a body.
        """
        self._check_source(source, "wait()")
        return self._wait(First({"": source}, keyed=False))

    def select(self, **sources: Promise | Timer) -> Any:
        """Go on when the first of several promises and timers has come; which one that was is remembered.

        What came earlier was first, whenever the body sees it. The others stay as they are and can be waited for again.

        :param sources: promises and timers, under the names by which the body tells them apart.
        :returns: a :class:`Selected`, ``(key, value)``; in ``async def`` code an awaitable of it.
        :raises PromiseRejected, PromiseTimeout: the first was a promise that was rejected, or has expired.
        :raises ConfigurationError: for nothing to wait for, and as :meth:`wait`.
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
            raise self._run.stuck(found)
        if self._run.saga.undoing:
            self._stop_at_the_end(scope, rows)
        return scope, position, rows

    def _next_place(self, name: str) -> tuple[ScopeState, int]:
        scope = self._here()
        self._check(name)
        if scope.left is not None:
            raise scope.left
        self._run.count_step(name)
        position = scope.take_position()
        self._run.settle_errors(scope.path, position)
        return scope, position

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
            kept = run.decode(recorded.payload, f"the token of promise {name!r}")
            return self._promise(name, kept, lane)
        reached("promise.before_create", run.execution_id, name)
        kept = run.earlier_promises().get(known)
        if kept is None:
            of = [scope.lane, name, number]
            kept = {
                "id": known,
                "of": of,
                "timeout": timeout_ms,
                "heartbeat": heartbeat_ms,
                **run.tokens.mint(known)[0],
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
        tokens, known = self._run.tokens, kept["id"]
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
            answer = station.look()
            if isinstance(answer, Came):
                return self._deliver(answer)
            if self._run.saga.undoing:
                self._stop_at_the_end(scope, None)
            pause = station.pause(answer, looks)
            if pause is None:
                raise self._leave(scope, answer)
            time.sleep(pause)
            self._run.check()
            looks += 1

    async def _wait_async(self, station: Station) -> Any:
        self._unawaited.pop(station, None)
        parking = self._parking()
        if not station.ready:
            with parking.flight():
                await asyncio.to_thread(station.fetch)
        station.take()
        looks = 0
        while True:
            with parking.flight():
                answer = await asyncio.to_thread(station.look)
                if isinstance(answer, Came):
                    return self._deliver(answer)
                if self._run.saga.undoing:
                    self._stop_at_the_end(station.scope, None)
                pause = station.pause(answer, looks)
                if pause is not None:
                    await asyncio.sleep(pause)
                    self._run.check()
            if pause is None:
                await parking.park(station.scope, answer)
            looks += 1

    def _deliver(self, came: Came) -> Any:
        if came.replayed:
            self._run.counters.replayed += 1
        if came.error is not None:
            self._run.check()
            raise came.error
        return came.value

    def _leave(self, scope: ScopeState, waiting: Waiting) -> BaseException:
        """This scope is left because of what it waits for. A branch is left alone; the body for good."""
        scope.left = waiting
        if not scope.path and not scope.open_parallels:
            return self._run.stuck(waiting)
        return waiting

    def _parking(self) -> Parking:
        """Where the coroutines of this event loop wait."""
        loop = asyncio.get_running_loop()
        parking = self._parkings.get(loop)
        if parking is None:
            parking = self._parkings[loop] = Parking(self._leave)
        return parking

    def _in_coroutine(self) -> bool:
        """Whether the caller is a coroutine of the body, which awaits. A plain body may have been called by one."""
        try:
            return asyncio.get_running_loop() is not self._outer_loop
        except RuntimeError:
            return False

    def _check_awaited(self) -> None:
        """The body has returned.

        :raises ConfigurationError: it asked for a wait, and went on without it.
        """
        for station in self._unawaited:
            word = station.wait.word
            raise ConfigurationError(
                f"the {word} at position {station.place} of execution {self._run.execution_id} was asked for in 'async "
                f"def' code and never awaited, so the body did not wait. Write: await ctx.{word}(...)"
            )
