"""The same figures on a journal with a past, beside an empty one; and several workers on one database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from celery_durable.store.records import StoredPayload
from celery_durable.store.recovery import Published
from celery_durable.store.retention import RetentionStore
from celery_durable.store.tables import executions
from tests.support.worker import WorkerProcess

from .bodies import Bodies
from .endtoend import BARE_TASK, KINDS, durable
from .harness import Case, Note, stopwatch
from .stage import Stage
from .steps import guarded, plain

__all__ = ["EMPTY", "MEASURED", "name_of", "on_journal", "references", "sizes", "workers"]

#: Number of finished executions of an empty journal.
EMPTY = 0
#: What is measured on each journal.
MEASURED = (
    "execution of 10 steps",
    "guarded step",
    "replayed step of 100",
    "idle claim",
    "claim, per execution",
    "pruning, per execution of 10 steps",
)


def sizes(quick: bool, million: bool) -> tuple[int, ...]:
    """Finished executions of the journals that are compared."""
    if quick:
        return (EMPTY, 500)
    return (EMPTY, 10_000, 100_000, *((1_000_000,) if million else ()))


def name_of(what: str, size: int) -> str:
    """Name of a figure."""
    return f"{what}, journal of {size:,}" if size else f"{what}, empty journal"


def references(sizes: Sequence[int]) -> dict[str, str]:
    """Each figure in that of the empty journal."""
    return {name_of(what, size): name_of(what, EMPTY) for what in MEASURED for size in sizes}


def on_journal(bodies: Bodies, size: int, *, quick: bool) -> list[Case]:
    """What is measured on one journal."""
    run, guard, again, idle, claim, prune = (name_of(what, size) for what in MEASURED)
    some = 3 if quick else 20

    def running(note: Note) -> None:
        for _ in range(some):
            note(run, bodies.run(plain(10))[0])

    def guarding(note: Note) -> None:
        for _ in range(some):
            note(guard, bodies.run(guarded(2))[1] / 2)

    def replaying(note: Note) -> None:
        for _ in range(max(1, some // 4)):
            execution = bodies.new_id()
            bodies.interrupt(plain(100), execution)
            note(again, bodies.run(plain(100), execution)[1] / 100)

    def claiming(note: Note) -> None:
        recovery = bodies.runtime.recovery
        bodies.runtime.keeper.mark()
        for _ in range(some):
            with stopwatch(note, idle):
                assert not recovery.claim(100).due
        _make_due(bodies, 100)
        with stopwatch(note, claim, per=100):
            assert len(recovery.claim(100).due) == 100
        _forget_due(bodies)

    def pruning(note: Note) -> None:
        number = 2 * some
        for _ in range(number):
            bodies.run(plain(10))
        bodies.runtime.keeper.mark()  # nobody is to be told of them any more
        store = RetentionStore(bodies.runtime.database, namespace=bodies.runtime.settings.namespace)
        with stopwatch(note, prune, per=number):
            assert len(store.prune(store.look_back(2**63 - 1, number))) == number

    return [
        Case({run: "s"}, running),
        Case({guard: "s"}, guarding),
        Case({again: "s"}, replaying),
        Case({idle: "s", claim: "s"}, claiming),
        Case({prune: "s"}, pruning),
    ]


def _make_due(bodies: Bodies, count: int) -> None:
    """Executions whose message must be sent, as after the loss of a broker."""
    envelope = StoredPayload(*bodies.runtime.codec.encode("x" * 300))
    recovery = bodies.runtime.recovery
    recovery.publish([Published(bodies.new_id(), "due", 0, envelope) for _ in range(count)])
    due = sa.update(executions).where(executions.c.task == "due", executions.c.wake_at.is_not(None)).values(wake_at=1)
    bodies.runtime.database.write(lambda connection: connection.execute(due))


def _forget_due(bodies: Bodies) -> None:
    done = sa.update(executions).where(executions.c.wake_at.is_not(None)).values(wake_at=None, state="completed")
    bodies.runtime.database.write(lambda connection: connection.execute(done))


def workers(stage: Stage, staff: Sequence[WorkerProcess], *, quick: bool) -> list[Case]:
    """One, two, four workers at the same queue."""
    cases = []
    for kind in KINDS:
        if kind.name not in (BARE_TASK, durable(5)):
            continue
        for count in (1, 2, 4)[: len(staff).bit_length()]:
            name = f"{kind.name}, {count} workers" if count > 1 else f"{kind.name}, 1 worker"

            def turn(
                note: Note, name: str = name, task: str = kind.task, argument: int = kind.argument, count: int = count
            ) -> None:
                note(name, stage.throughput(task, argument, 60 if quick else 1000, staff[:count]))

            cases.append(Case({name: "1/s"}, turn))
    return cases
