"""A process that dies wherever it is told to.

A life is one run of the body by one process. Death is simulated as the kill it stands for: from that moment on nothing
of that process reaches the database or the outside world, no cleanup included; the next life gets the lease as if it
had run out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from celery import Celery

from celery_durable import DurableTask
from celery_durable.codec import Codec
from celery_durable.common import faults
from celery_durable.common.threads import Tended
from celery_durable.journal import packing
from celery_durable.journal.packing import unpacked
from celery_durable.runtime import runtime as runtimes
from celery_durable.store import Database, Operations
from celery_durable.store.journal_reader import journaled
from celery_durable.store.records import META, EntryKind, Execution, State, StoredPayload, place_of
from celery_durable.store.statements import ENTRY_COLUMNS
from celery_durable.store.tables import executions, journal

from .programs import World, run_program

__all__ = ["THE_EXECUTION", "Death", "Life", "Machine", "machine"]

THE_EXECUTION = "the-execution"


class Death(BaseException):
    """The process is dead: nothing it does has any effect."""


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
    """One process; it dies when it has reached its last fault point.

    :param points: how many it reaches; None: it lives on.
    :param meanwhile: what somebody else does when the process has reached so many.
    """

    def __init__(self, points: int | None = None, meanwhile: Mapping[int, Callable[[], None]] | None = None) -> None:
        self._last = points
        self._meanwhile = dict(meanwhile or {})
        #: Fault points that it has reached.
        self.points = 0
        self._stands = False
        self.dead = False

    def check(self) -> None:
        if self.dead:
            raise Death

    def reached(self, point: str) -> None:
        """The process is at a fault point of the protocol."""
        self.check()
        if self._stands:
            return  # it is somebody else who is there
        act = self._meanwhile.pop(self.points, None)
        if act is not None:
            self._stands = True
            try:
                act()
            finally:
                self._stands = False
        if self.points == self._last:
            self.dead = True
            raise Death
        self.points += 1


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
        self.app.conf.broker_url = "memory://"
        self.app.conf.result_backend = "cache+memory://"
        shared = Database("sqlite://")
        shared.check_schema()
        _Mortal.shared = shared.engine
        patch.setattr(runtimes, "Database", _Mortal)
        # Buffered entries are committed by acknowledged commits alone, or not at all: the worst case.
        patch.setattr(Tended, "_start", lambda self, life: None)
        # As many packs as there can be.
        patch.setattr(packing, "_LEAST", 2)
        patch.setattr(faults, "_armed", {"any": []})
        patch.setattr(faults, "_act", lambda point, *where: self.life.reached(point))
        self._be_born(Life())
        self.deaths = 0
        #: Fault points that the last life has reached.
        self.points = 0
        self._program: tuple[Any, ...] = ()
        self._world = World()

        def body(task: Any) -> Any:
            return run_program(task.durable, self._program, self._world)

        options = {"name": "program", "ignore_result": True, "shared": False}
        self._task = self.app.task(body, bind=True, base=DurableTask, **options)

    def _be_born(self, life: Life) -> None:
        self.life = _Mortal.life = life
        runtimes._runtimes.pop(self.app, None)

    def publish(self) -> None:
        """Send the execution's message, so that it can be run anew later on. Nobody takes it."""
        self._task.apply_async(durable_id=THE_EXECUTION)

    def live(
        self, program: tuple[Any, ...], world: World, life: Life | None = None, execution: str = THE_EXECUTION
    ) -> Any:
        """One life of an execution of the program.

        :raises Death: when it ended early.
        """
        life = life or Life()
        self._be_born(life)
        world.alive = self.life.check
        self._program, self._world = program, world
        try:
            return self._task.apply(task_id=execution, throw=True).get()
        except Death:
            self.deaths += 1
            raise
        finally:
            with _Mortal.shared.begin() as connection:
                connection.execute(sa.update(executions).values(lease_until=0))
            self.points = life.points
            self._be_born(Life())  # whoever looks at it

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> Operations:
        """What somebody outside can do, whoever is dead."""
        database = _Mortal("sqlite://")
        database.own = Life()
        return Operations(database, namespace="programs")

    def row(self, execution: str = THE_EXECUTION) -> Execution:
        return self.operations.get(execution)

    def state(self, execution: str = THE_EXECUTION) -> State:
        return self.row(execution).state

    def packs(self) -> int:
        """How many rows hold several steps."""
        query = sa.select(sa.func.count()).where(journal.c.kind == int(EntryKind.CHECKPOINT))
        with _Mortal.shared.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def journal(self) -> list[tuple[Any, ...]]:
        """What the journal came to: the last entry of each position."""
        of_it = (journal.c.pk == self.row().pk, journal.c.scope != META)
        query = sa.select(*ENTRY_COLUMNS).where(*of_it).order_by(journal.c.scope, journal.c.position, journal.c.entry)
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

    # -- what an operator does ----------------------------------------------------------------------------------

    def settle(self, world: World, execution: str = THE_EXECUTION) -> None:
        """Look at the remote side for a step in doubt, and say what it says."""
        operations, codec = self.operations, Codec()
        row = operations.get(execution)
        for entry in _last_entries(operations.entries(row.pk, row.generation)):
            if entry.kind == EntryKind.AUDIT:
                # The journal has no keys of steps that may be repeated.
                key = entry.key or world.keys.get((execution, place_of(entry.scope, entry.position)), b"")
                happened = key in world.fired
                kind = EntryKind.RESULT if happened else EntryKind.RUN_AGAIN
                payload = StoredPayload(*codec.encode(world.values[key])) if happened else None
                note = StoredPayload(*codec.encode("the property test"))
                operations.resolve(row.id, entry.scope, entry.position, kind, payload, note=note)
                return


def _last_entries(rows: Any) -> list[Any]:
    last: dict[tuple[str, int], Any] = {}
    for row in rows:
        last[row.scope, row.position] = row
    return list(last.values())
