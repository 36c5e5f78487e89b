"""Random durable bodies, and a process that dies wherever it is told to.

A life is one run of the body by one process. Death is simulated as the kill it stands for: from that moment on nothing
of that process reaches the database or the outside world, no cleanup included; the next life gets the lease as if it
had run out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from celery import Celery
from hypothesis import strategies as st

from celery_durable import (
    DID_NOT_HAPPEN,
    DurableTask,
    Happened,
    Intent,
    OnAmbiguous,
    Retry,
    StepDescriptor,
    current_step,
    faults,
    packing,
)
from celery_durable import runtime as runtimes
from celery_durable.effects import UNSET
from celery_durable.packing import unpacked
from celery_durable.store import Database, Operations
from celery_durable.store.journal import journaled
from celery_durable.store.records import EntryKind, State, StoredPayload
from celery_durable.store.statements import ENTRY_COLUMNS
from celery_durable.store.tables import executions, journal
from celery_durable.writer import JournalWriter


class Death(BaseException):
    """The process is dead: nothing it does has any effect."""


class Wrong(Exception):
    """What operations of the random programs raise."""


# -- programs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Do:
    """One step."""

    name: str
    effect: str
    argument: int
    #: How many of its first tries raise; all of them where the policy allows no more than that.
    failures: int = 0
    #: How many tries its retry policy allows.
    tries: int = 1


@dataclass(frozen=True)
class Loop:
    """The same statements several times."""

    times: int
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Branches:
    """Statements in branches of a parallel scope."""

    branches: tuple[tuple[Any, ...], ...]


EFFECTS = ("idempotent", "at_least_once", "skip", "rerun", "fail", "reconcile")

_do = st.builds(
    Do,
    name=st.sampled_from("abc"),
    effect=st.sampled_from(EFFECTS),
    argument=st.integers(0, 2),
    failures=st.integers(0, 2),
    tries=st.integers(1, 3),
    # SKIP takes a step for done that could only have failed; what it then gives is the assumed value.
).map(lambda do: replace(do, failures=0) if do.effect == "skip" else do)
_flat = st.lists(_do, min_size=1, max_size=3).map(tuple)
_statement = st.one_of(
    _do,
    st.builds(Loop, st.integers(1, 3), _flat),
    st.builds(Branches, st.lists(_flat, min_size=1, max_size=3).map(tuple)),
)
programs = st.lists(_statement, min_size=1, max_size=5).map(tuple)


# -- the outside world ------------------------------------------------------------------------------------------


@dataclass
class World:
    """What happened outside, by idempotency key; it outlives every process."""

    fired: Counter[bytes] = field(default_factory=Counter)
    values: dict[bytes, str] = field(default_factory=dict)
    #: Tries of each key that raised, before anything happened.
    refused: Counter[bytes] = field(default_factory=Counter)
    guarded: set[bytes] = field(default_factory=set)
    deduplicated: set[bytes] = field(default_factory=set)
    #: Keys of steps that may be assumed to have happened.
    skippable: set[bytes] = field(default_factory=set)
    alive: Callable[[], None] = lambda: None

    def operate(self, do: Do, argument: int) -> str | None:
        """An operation: fires its effect, or raises before it does."""
        self.alive()
        key = current_step().idempotency_key
        if self.refused[key] < do.failures or do.failures >= do.tries:
            self.refused[key] += 1
            raise Wrong(f"{do.name} refuses")
        self.fired[key] += 1
        if do.effect in ("skip", "rerun", "fail", "reconcile"):
            self.guarded.add(key)
        if do.effect == "rerun":
            self.deduplicated.add(key)
        if do.effect == "skip":
            self.skippable.add(key)
        # SKIP has no better value than the assumed one, so an honest program does not need another.
        value = None if do.effect == "skip" else f"{do.name}{argument}"
        if value is not None:
            self.values[key] = value
        return value


def descriptor(do: Do, world: World) -> StepDescriptor:
    """The step of a statement."""
    retry = Retry(do.tries, backoff=0, on=(Wrong,)) if do.tries > 1 else None
    name = f"{do.name}-{do.effect}-{do.failures}-{do.tries}"
    if do.effect == "idempotent":
        return StepDescriptor.idempotent(name, retry=retry)
    if do.effect == "at_least_once":
        return StepDescriptor.at_least_once(name, retry=retry)

    def reconcile(handle: Any, argument: int) -> Any:
        world.alive()
        key = handle.idempotency_key
        return Happened(world.values[key]) if key in world.values else DID_NOT_HAPPEN

    policy: Any = {
        "skip": OnAmbiguous.SKIP,
        "rerun": OnAmbiguous.RERUN,
        "fail": OnAmbiguous.FAIL,
        "reconcile": reconcile,
    }[do.effect]
    return StepDescriptor.guarded(
        name,
        Intent.CUSTOM,
        on_ambiguous=policy,
        assumed=None if do.effect == "skip" else UNSET,
        definite=Wrong,
        retry=retry,
    )


def run_program(context: Any, program: tuple[Any, ...], world: World) -> list[Any]:
    """Interpret a program as the body of a task."""
    results: list[Any] = []
    for statement in program:
        if isinstance(statement, Do):
            results.append(_do_step(context, statement, world))
        elif isinstance(statement, Loop):
            results.extend(run_program(context, statement.body, world) for _ in range(statement.times))
        else:
            # One worker: the order of crashes is the same each time Hypothesis looks.
            with context.parallel(max_workers=1) as scope:
                branches = [scope.submit(run_program, context, b, world) for b in statement.branches]
            results.append([b.result() for b in branches])
    return results


def _do_step(context: Any, do: Do, world: World) -> Any:
    try:
        return context.step(descriptor(do, world), lambda argument: world.operate(do, argument), do.argument)
    except Wrong as error:
        return f"handled {error}"


# -- lives and deaths -------------------------------------------------------------------------------------------


class _Mortal(Database):
    """The database, as a process sees it that may be dead."""

    shared: sa.Engine
    life: Life

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.own = type(self).life

    @property
    def engine(self) -> sa.Engine:
        return type(self).shared

    def write(self, work: Any, **options: Any) -> Any:
        self.own.check()
        return super().write(work, **options)

    def read(self, work: Any, **options: Any) -> Any:
        self.own.check()
        return super().read(work, **options)


class Life:
    """One process; it dies when it has reached its last fault point."""

    def __init__(self, points: int | None) -> None:
        self._left = points
        self.dead = False

    def check(self) -> None:
        if self.dead:
            raise Death

    def reached(self, point: str) -> None:
        """The process is at a fault point of the protocol."""
        self.check()
        if self._left is not None:
            if self._left == 0:
                self.dead = True
                raise Death
            self._left -= 1


@contextmanager
def machine(monkeypatch: Any) -> Iterator[Machine]:
    """A place where a program can be run and killed."""
    with monkeypatch.context() as patch:
        yield Machine(patch)


class Machine:
    """An app with an in-memory journal that outlives its processes."""

    def __init__(self, patch: Any) -> None:
        self.app = Celery("programs", set_as_current=False)
        self.app.conf.durable_database_url = "sqlite://"
        self.app.conf.durable_max_attempts = 10_000
        self.app.conf.task_store_eager_result = False
        shared = Database("sqlite://")
        shared.check_schema()
        _Mortal.shared = shared.engine
        patch.setattr(runtimes, "Database", _Mortal)
        # Buffered entries are committed by acknowledged commits alone, or not at all: the worst case.
        patch.setattr(JournalWriter, "_start_timer", lambda self: None)
        patch.setattr(runtimes.Keeper, "_start", lambda self: None)
        # As many packs as there can be.
        patch.setattr(packing, "_LEAST", 2)
        patch.setattr(faults, "_armed", {"any": []})
        patch.setattr(faults, "_act", lambda point, *where: self.life.reached(point))
        self.life = Life(None)
        self.deaths = 0
        self._program: tuple[Any, ...] = ()
        self._world = World()

        def body(task: Any) -> Any:
            return run_program(task.durable, self._program, self._world)

        self._task = self.app.task(body, bind=True, base=DurableTask, name="program", ignore_result=True)

    def live(self, program: tuple[Any, ...], world: World, points: int | None) -> Any:
        """One life of the program's execution.

        :raises Death: when it reached ``points`` fault points.
        """
        self.life = _Mortal.life = Life(points)
        runtimes._runtimes.pop(self.app, None)
        world.alive = self.life.check
        self._program, self._world = program, world
        try:
            return self._task.apply(task_id="the-execution", throw=True).get()
        except Death:
            self.deaths += 1
            raise
        finally:
            with _Mortal.shared.begin() as connection:
                connection.execute(sa.update(executions).values(lease_until=0))

    def state(self) -> State:
        """The execution's state."""
        with _Mortal.shared.connect() as connection:
            return State(connection.execute(sa.select(executions.c.state)).scalar_one())

    def settle(self, world: World) -> None:
        """What an operator does: looks at the remote side, and says so."""
        operations = Operations(_Mortal.shared_database(), namespace="programs")
        [row] = operations.find()
        for entry in _last_entries(operations.entries(row.pk, row.generation)):
            if entry.kind == EntryKind.AUDIT:
                assert entry.key is not None
                value = world.values.get(entry.key)
                kind = EntryKind.RUN_AGAIN if value is None else EntryKind.RESULT
                payload = None if value is None else StoredPayload(*self._codec().encode(value))
                note = StoredPayload(*self._codec().encode("the property test"))
                operations.resolve(row.id, entry.scope, entry.position, kind, payload, note=note)
                return

    @staticmethod
    def _codec() -> Any:
        from celery_durable.codec import Codec

        return Codec()

    def packs(self) -> int:
        """How many rows hold several steps."""
        query = sa.select(sa.func.count()).where(journal.c.kind == int(EntryKind.CHECKPOINT))
        with _Mortal.shared.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def journal(self) -> list[tuple[Any, ...]]:
        """What the journal came to: the last entry of each position."""
        query = sa.select(*ENTRY_COLUMNS).order_by(journal.c.scope, journal.c.position, journal.c.entry)
        with _Mortal.shared.connect() as connection:
            rows = list(unpacked(map(journaled, connection.execute(query))))
        done = {EntryKind.SKIPPED: EntryKind.RESULT}
        return [
            (
                r.scope,
                r.position,
                done.get(EntryKind(r.kind), EntryKind(r.kind)).name,
                r.name,
                r.key,
                # An error's record holds a traceback, with line numbers of this very file.
                None if r.kind == EntryKind.ERROR else r.payload,
            )
            for r in _last_entries(rows)
        ]


def _last_entries(rows: Any) -> list[Any]:
    last: dict[tuple[str, int], Any] = {}
    for row in rows:
        last[row.scope, row.position] = row
    return list(last.values())


def _shared_database() -> Database:
    _Mortal.life = Life(None)
    return _Mortal("sqlite://")


_Mortal.shared_database = staticmethod(_shared_database)  # type: ignore[attr-defined]

__all__ = ["Death", "Machine", "World", "machine", "programs"]
