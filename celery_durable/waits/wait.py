"""The rules of waiting: what a wait is, how it is journaled, and what decides it.

A wait takes a position like a step. Its first entry says what is waited for; a RESULT or an ERROR after it holds the
outcome, so that a replay decides the same without asking anybody. In between, the body may be left and run again many
times.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from celery_durable.common.coroutines import running_task
from celery_durable.common.faults import reached
from celery_durable.errors import PromiseRejected, PromiseTimeout
from celery_durable.identity import wait_print
from celery_durable.journal.entries import Past, fold
from celery_durable.replay import divergence
from celery_durable.replay.leaving import Waiting
from celery_durable.replay.pending import PendingError
from celery_durable.replay.run import Run
from celery_durable.replay.scope import ScopeState
from celery_durable.store.promises.promises import Look
from celery_durable.store.promises.rows import PromiseRow
from celery_durable.store.records import (
    Awaited,
    Entry,
    EntryKind,
    Journaled,
    NewPromise,
    Offspring,
    PromiseState,
    StoredPayload,
)

from .promise import Promise, Selected, Timer

__all__ = ["Came", "First", "Sleep", "Station", "Wait", "read_timer"]

#: A wait that is over within this time is not worth leaving the worker, in seconds.
_SHORT: Final = 0.05
#: Longest pause between two looks of a wait that is sat out, in seconds.
_GLANCE: Final = 0.5
#: The journal's column for names.
_LONGEST_NAME: Final = 200


class Came(NamedTuple):
    """The outcome of a wait."""

    value: Any = None
    error: Exception | None = None
    replayed: bool = False


class Wait(abc.ABC):
    """Something that a body waits for, at one position."""

    #: What its first entry is.
    kind = EntryKind.WAIT
    #: How errors call it.
    word = "wait"

    def __init__(
        self,
        name: str,
        fingerprint: bytes,
        *,
        promises: Iterable[str] = (),
        timers: Iterable[Timer] = (),
        needed: int = 1,
    ) -> None:
        #: Its name in the journal.
        self.name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        self.fingerprint = fingerprint
        #: Their ids.
        self.promises = tuple(dict.fromkeys(promises))
        self.timers = tuple(timers)
        #: How many of the promises must be settled for the body to have another look.
        self.needed = needed

    def armed(self, run: Run) -> StoredPayload | None:
        """What the first entry keeps."""
        return None

    def begin(self, station: Station) -> None:
        """Nothing stands in the journal yet. Blocks."""
        station.append(self.kind, self.armed(station.run))

    def resume(self, rows: Sequence[Journaled], run: Run) -> None:  # noqa: B027  (nothing, for most)
        """It has begun, and has no outcome yet: this is what the journal holds."""

    def proceed(self, look: Look | None, station: Station) -> bool:
        """It has no outcome yet: do more for it, if there is anything to do.

        :returns: True where something was done, so that it is to be looked at again.
        """
        return False

    def conclude(self, run: Run) -> None:  # noqa: B027  (nothing, for most)
        """It has an outcome, which is going to be journaled."""

    def look(self, run: Run) -> Look | None:
        """The promises, and the database's clock, where it asks for any."""
        return run.look(self.promises) if self.promises else None

    @abc.abstractmethod
    def decide(self, look: Look | None, run: Run) -> Came | None:
        """Its outcome; None if there is none yet. A value must be one that can be stored.

        :param look: the promises, where there are any.
        """

    def read(self, stored: Any, run: Run) -> Any:
        """What the body gets for a journaled value."""
        return stored

    def lost(self, ids: Iterable[str]) -> list[NewPromise]:
        """Promises of the journal that the database has no rows of, made again."""
        return []


class Sleep(Wait):
    """Until a time."""

    kind = EntryKind.TIMER
    word = "sleep"

    def __init__(self, *, delay_ms: int = 0, until_ms: int | None = None) -> None:
        self._delay_ms = delay_ms
        self._until_ms = until_ms
        super().__init__("sleep", wait_print("sleep"), timers=[Timer(due=until_ms, delay_ms=delay_ms)])

    def armed(self, run: Run) -> StoredPayload | None:
        return write_timer(run, self._delay_ms, self._until_ms)

    def resume(self, rows: Sequence[Journaled], run: Run) -> None:
        self.timers = (read_timer(run, rows[0]),)

    def decide(self, look: Look | None, run: Run) -> Came | None:
        return Came() if self.remaining(run.clock) <= 0 else None

    def remaining(self, clock: Callable[[], int]) -> float:
        """Seconds until it is over; 0 or less where it is.

        :param clock: in ms since the epoch.
        """
        [timer] = self.timers
        return timer._remaining(clock) / 1000


class First(Wait):
    """The first of several promises and timers.

    :param sources: under the keys by which the body distinguishes them.
    :param keyed: the body gets the key too.
    """

    def __init__(self, sources: Mapping[str, Promise | Timer], *, keyed: bool) -> None:
        self._sources = dict(sources)
        self._keyed = keyed
        promises = [source for source in sources.values() if isinstance(source, Promise)]
        timers = [source for source in sources.values() if isinstance(source, Timer)]
        words = [f"{key}={self._identity(source)}" for key, source in sorted(sources.items())]
        name = ", ".join(sources) if keyed else "".join(p.name for p in promises) or "timer"
        self.word = "select" if keyed else "wait"
        ids = [promise._row_id for promise in promises]
        super().__init__(name, wait_print(self.word, *words), promises=ids, timers=timers)

    @staticmethod
    def _identity(source: Promise | Timer) -> str:
        """The same in a journal that was copied, whose promises have other ids."""
        return f"promise {source._lane} {source.name}" if isinstance(source, Promise) else f"timer {source._place}"

    def decide(self, look: Look | None, run: Run) -> Came | None:
        now = run.clock() if look is None else look.now
        best: tuple[int, str, PromiseRow | None] | None = None
        for key, source in self._sources.items():
            row = None
            if isinstance(source, Timer):
                time = source._due_at(now)
                if time > now:
                    continue
            else:
                row = look.rows.get(source._row_id) if look is not None else None
                if row is None or row.settled_at is None:
                    continue
                time = row.settled_at
            # What came earlier was first, though the body sees both only now.
            if best is None or time < best[0]:
                best = (time, key, row)
        if best is None:
            return None
        _, key, row = best
        came = Came() if row is None else kept(row, run)
        return came._replace(value={"key": key, "value": came.value}) if self._keyed and not came.error else came

    def lost(self, ids: Iterable[str]) -> list[NewPromise]:
        gone = set(ids)
        return [s._row() for s in self._sources.values() if isinstance(s, Promise) and s._row_id in gone]

    def read(self, stored: Any, run: Run) -> Any:
        if not self._keyed:
            return stored
        with run.reading(f"what came first of {self.name!r}"):
            return Selected(stored["key"], stored["value"])


def kept(row: PromiseRow, run: Run) -> Came:
    """What a settled promise brought."""
    where = f"what promise {row.name!r} of execution {run.execution_id} brought"
    if row.state is PromiseState.RESOLVED:
        return Came(run.decode(row.payload, where))
    about = {"promise": row.name, "promise_id": row.known_as}
    if row.state is PromiseState.EXPIRED:
        return Came(
            error=PromiseTimeout(
                f"promise {row.name!r} of execution {run.execution_id} was not resolved in time.", **about
            )
        )
    with run.reading(where):
        given = None if row.payload is None else run.codec.decode_either(row.payload.codec, row.payload.data, where)
    error = given if isinstance(given, Exception) else None
    reason = f"{type(given).__name__}: {given}" if error is not None else str(given)
    message = f"promise {row.name!r} of execution {run.execution_id} was rejected: {reason}"
    rejected = PromiseRejected(message, **about, reason=reason, error=error)
    rejected.__cause__ = error
    return Came(error=rejected)


# -- timers in the journal ----------------------------------------------------------------------------------------


def write_timer(run: Run, delay_ms: int, until_ms: int | None) -> StoredPayload:
    """What a TIMER entry keeps."""
    value = {"delay": delay_ms} if until_ms is None else {"until": until_ms}
    return run.roundtrip(value, "a timer")[0]


def read_timer(run: Run, row: Journaled) -> Timer:
    """The timer of a TIMER entry: it runs since that was written, by the database's clock."""
    payload = None if row.codec is None or row.payload is None else StoredPayload(row.codec, row.payload)
    where = f"the timer at position {row.position}"
    with run.reading(where):
        kept = run.decode(payload, where)
        return Timer(due=int(kept["until"] if "until" in kept else row.at + kept["delay"]))


# -- one wait at its place ----------------------------------------------------------------------------------------


class Station:
    """A wait of a running body, at its position. Where it says so, it speaks to the database and may block."""

    def __init__(self, run: Run, scope: ScopeState, position: int, wait: Wait) -> None:
        self.run = run
        self.scope = scope
        self._position = position
        self.wait = wait
        #: Number of the next entry here.
        self._next = 0
        self._rows: list[Journaled] | None = None

    @property
    def place(self) -> str:
        """The position as people read it."""
        return self.scope.place(self._position)

    @property
    def ready(self) -> bool:
        """True when :meth:`take` does not block."""
        return self.scope.cursor.ready(self._position)

    def fetch(self) -> None:
        """Read what the journal has here. Blocks."""
        self.scope.cursor.has(self._position)

    def take(self) -> None:
        """Compare what the journal has here with the wait; blocks unless :attr:`ready`.

        :raises ReplayDivergence: when it is something else.
        """
        self._rows = self.scope.cursor.take(self._position)
        wait, run = self.wait, self.run
        found = divergence.check_wait(
            self._rows, run.execution_id, self.scope, self._position, wait.kind, wait.name, wait.fingerprint
        )
        if found is not None:
            raise run.standing.bar(found)

    @property
    def decided(self) -> bool:
        """The journal holds its outcome."""
        return self._rows is not None and fold(self._rows).past in (Past.DONE, Past.ERROR)

    def look(self) -> Came | Waiting:
        """The outcome of the wait, or what is left of it. Blocks."""
        run, wait = self.run, self.wait
        if self._rows is not None and not self._next:
            recorded = fold(self._rows)
            self._next = recorded.next_entry
            where = f"the journaled outcome of {wait.word} {wait.name!r} (position {self.place})"
            if recorded.past is Past.DONE:
                return Came(wait.read(run.decode(recorded.payload, where), run), replayed=True)
            if recorded.past is Past.ERROR:
                return Came(error=run.decode_error(recorded.payload, where), replayed=True)
            wait.resume(self._rows, run)
        elif not self._next:
            reached("wait.before_arm", run.execution_id, wait.name)
            wait.begin(self)
        if run.standing.degraded:
            # Nothing can be waited for without the journal; the execution is given back until it answers.
            return Waiting(names=[wait.name])
        look = self._promises()
        came = wait.decide(look, run)
        while came is None and wait.proceed(look, self):
            look = self._promises()
            came = wait.decide(look, run)
        if came is None:
            return self._left(look)
        wait.conclude(run)
        return self._record(came)

    def _promises(self) -> Look | None:
        """The promises that are waited for. Those whose rows are gone are made again."""
        run, wait = self.run, self.wait
        look = wait.look(run)
        if look is None:
            return None
        missing = [one for one in wait.promises if one not in look.rows]
        if not missing:
            return look
        run.restore(wait.lost(missing))
        return wait.look(run)

    def _record(self, came: Came) -> Came:
        """Journal it; what the body gets is what every replay will give it."""
        run, wait = self.run, self.wait
        if self._rows is not None:
            reached("wait.woken", run.execution_id, wait.name)
        where = f"the outcome of {wait.word} {wait.name!r} (position {self.place})"
        if came.error is not None:
            payload, error = run.roundtrip_error(came.error, where)
            self.append(EntryKind.ERROR, payload)
            return Came(error=error)
        payload, value = run.roundtrip(came.value, where)
        self.append(EntryKind.RESULT, payload)
        return Came(wait.read(value, run))

    def broken_off(self, error: BaseException) -> None:
        """Somebody has cancelled the coroutine that waits here: if the body continues without it, so will a replay."""
        if not self._next or self.decided:
            return  # it has not begun, or a replay knows already
        wait, run = self.wait, self.run
        payload, _ = run.roundtrip_error(error, f"the end of {wait.word} {wait.name!r} (position {self.place})")
        entry = Entry(self.scope.path, self._position, self._next, EntryKind.ERROR, None, wait.name, wait.fingerprint)
        run.note(PendingError(self.scope.path, self._position, entry._replace(payload=payload), None, running_task()))

    def append(self, kind: EntryKind, payload: StoredPayload | None, offspring: Offspring | None = None) -> None:
        """Write the next entry here.

        :param offspring: children that are recorded with it.
        """
        wait = self.wait
        entry = Entry(self.scope.path, self._position, self._next, kind, None, wait.name, wait.fingerprint)
        self.run.append(entry._replace(payload=payload, offspring=offspring))
        self._next += 1

    def _left(self, look: Look | None) -> Waiting:
        run, wait = self.run, self.wait
        timer = min((timer._remaining(run.clock) for timer in wait.timers), default=None)
        awaited, deadline = [], None
        if look is not None:
            pending = [row for row in look.rows.values() if row.pending]
            deadline = min((row.deadline - look.now for row in pending if row.deadline is not None), default=None)
            settled = len(look.rows) - len(pending)
            awaited.append(Awaited(tuple(row.id for row in pending), max(wait.needed - settled, 1)))
        return Waiting(timer=_seconds(timer), deadline=_seconds(deadline), awaited=awaited, names=[wait.name])

    def pause(self, waiting: Waiting, looks: int) -> float | None:
        """Seconds to sit here before the next look; None where the body is to be left.

        :param looks: how often this wait was looked at already.
        """
        if self.run.standing.degraded:
            return None
        delay = waiting.delay
        if self.run.inline:
            glance = min(0.01 * 2 ** min(looks, 10), _GLANCE)
            return glance if delay is None else min(delay, glance if self.wait.promises else _GLANCE)
        return delay if delay is not None and delay <= _SHORT else None


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else max(ms, 0) / 1000
