"""The suites: each sets up what it needs, on one database, and gives back sections."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import brokers, databases
from tests.support.backends import Backend, Missing
from tests.support.brokers import MessageBroker
from tests.support.crowd import populate
from tests.support.databases import JournalDatabase

from . import disk, endtoend, floor, history, looks, processors, recovery, replay, scale, steps, waits
from .bodies import Bodies, on
from .harness import Case, Figure, Section, all_in, measure
from .machine import database_facts
from .peers import suite as peers
from .peers.environment import NotInstallable
from .peers.peer import PEERS, Program
from .stage import Stage, on_stage

__all__ = ["SUITES", "Bench"]


@dataclass
class Bench:
    """One run: what is to be measured, and what came of it."""

    broker: str
    peers: tuple[str, ...]
    rounds: int
    quick: bool
    million: bool
    #: Told what happens now.
    progress: Callable[[str], None]
    #: Told which suite begins, and where.
    begins: Callable[[str], None]
    sections: list[Section] = field(default_factory=list)
    #: What could not be measured → why.
    missing: dict[str, str] = field(default_factory=dict)
    #: Database → its facts.
    databases: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    _database_backends: dict[str, Backend[JournalDatabase]] = field(default_factory=dict)
    _broker_backends: dict[str, Backend[MessageBroker]] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="durable-bench-", ignore_cleanup_errors=True)
    )

    def run(self, suites: tuple[str, ...], kinds: tuple[str, ...]) -> None:
        """Run suites on databases; what is missing is remembered, and the rest goes on."""
        for kind in kinds:
            if not self._find_database(kind):
                continue
            for name in suites:
                self.begins(f"{name} on {kind}")
                try:
                    self.sections += SUITES[name](self, kind)
                except Missing as missing:
                    self.missing[f"{name} on {kind}"] = str(missing)
                except Exception as error:
                    # A run takes long: what the other suites measured must not be lost with this one.
                    traceback.print_exc()
                    self.missing[f"{name} on {kind}"] = f"it failed: {type(error).__name__}: {error}"

    def close(self) -> None:
        """Stop what was started, and delete its files."""
        for backend in (*self._database_backends.values(), *self._broker_backends.values()):
            backend.close()
        self._folder.cleanup()

    def measure(self, cases: list[Case]) -> dict[str, Figure]:
        """Let the cases take turns."""
        return measure(cases, self.rounds, self.progress, warm_up=not self.quick)

    # -- what suites ask for ---------------------------------------------------------------------------------

    def folder(self) -> Path:
        """A new one, for anything."""
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def _find_database(self, kind: str) -> bool:
        try:
            self._database_backends[kind] = databases.FINDERS[kind]()
        except Missing as missing:
            self.missing[f"database {kind}"] = str(missing)
            return False
        with self.database(kind) as database:
            self.databases[kind] = database_facts(database)
        return True

    @contextmanager
    def database(self, kind: str) -> Iterator[JournalDatabase]:
        """An empty database."""
        with self._database_backends[kind].lend(self.folder()) as database:
            yield database

    @contextmanager
    def bodies(self, kind: str) -> Iterator[tuple[Bodies, floor.Floor]]:
        """Bodies on an empty database, and its floor."""
        with self.database(kind) as database, floor.floor(database.url) as ground, on(database.url) as bodies:
            yield bodies, ground

    @contextmanager
    def stage(self, kind: str) -> Iterator[Stage]:
        """Workers on an empty database and the broker.

        :raises Missing: where there is no such broker.
        """
        if self.broker not in self._broker_backends:
            self._broker_backends[self.broker] = brokers.FINDERS[self.broker]()
        broker = self._broker_backends[self.broker]
        self.versions[self.broker] = broker.version
        with on_stage(self._database_backends[kind].lend, broker.lend, self.folder() / "stage") as stage:
            yield stage


def _floor(bench: Bench, kind: str) -> list[Section]:
    with bench.database(kind) as database, floor.floor(database.url) as ground:
        figures = bench.measure(floor.cases(ground, quick=bench.quick))
    return [Section("floor", kind, figures, all_in(figures, floor.BARE))]


def _steps(bench: Bench, kind: str) -> list[Section]:
    with bench.bodies(kind) as (bodies, ground):
        figures = bench.measure(steps.cases(bodies, ground, quick=bench.quick))
    return [Section("steps", kind, figures, all_in(figures, floor.BARE))]


def _disk(bench: Bench, kind: str) -> list[Section]:
    if kind != "postgresql":
        return []
    with ExitStack() as stack:

        def enter(delay: int) -> tuple[Bodies, floor.Floor]:
            url = disk.delayed(stack.enter_context(bench.database(kind)).url, delay)
            return stack.enter_context(on(url)), stack.enter_context(floor.floor(url))

        figures = bench.measure(disk.cases(enter, quick=bench.quick))
    return [Section("disk", kind, figures, disk.references(), list(disk.REMARKS))]


def _replay(bench: Bench, kind: str) -> list[Section]:
    with bench.bodies(kind) as (bodies, ground):
        few = 20 if bench.quick else 200
        cases = [floor.bare(ground, few), floor.python(), *replay.cases(bodies, quick=bench.quick)]
        figures = bench.measure(cases)
        bench.progress("tracing memory")
        traced = replay.memory(bodies, quick=bench.quick)
    return [Section("replay", kind, figures, all_in(figures, floor.BARE)), Section("replay: memory", kind, traced)]


def _endtoend(bench: Bench, kind: str) -> list[Section]:
    sections = []
    with bench.stage(kind) as stage:
        for processes in (endtoend.FEW, endtoend.MANY):
            # Alone: one that has nothing to do still looks around.
            worker = stage.worker(concurrency=processes)
            loads = bench.measure(endtoend.loads(stage, processes, worker, quick=bench.quick))
            throughput = {name: figure for name, figure in loads.items() if figure.unit == "1/s"}
            taken = {name: figure for name, figure in loads.items() if name not in throughput}
            plain_rate = endtoend.rate(endtoend.PLAIN_TASK, processes)
            title = f"endtoend: throughput, {processes} pool processes"
            sections.append(Section(title, kind, throughput, all_in(throughput, plain_rate), endtoend.REMARKS))
            title = f"endtoend: processor time, {processes} pool processes"
            sections.append(Section(title, kind, taken, {}, list(processors.REMARKS)))
            if processes == endtoend.FEW:
                latency = bench.measure(endtoend.latencies(stage, quick=bench.quick))
            worker.end()
        counted = endtoend.commits(stage, quick=bench.quick, progress=bench.progress)
    plain_latency = endtoend.latency(endtoend.PLAIN_TASK)
    return [
        *sections,
        Section("endtoend: latency", kind, latency, all_in(latency, plain_latency)),
        Section("endtoend: commits", kind, counted, {}, endtoend.COUNTED[kind]),
    ]


def _scale(bench: Bench, kind: str) -> list[Section]:
    sizes = scale.sizes(bench.quick, bench.million)
    with ExitStack() as stack:
        cases = []
        for size in sizes:
            bodies, _ = stack.enter_context(bench.bodies(kind))
            history.load(bodies, size, bench.progress)
            cases.append(scale.on_journal(bodies, size, quick=bench.quick))
        # Each thing on all journals in turn, before the next thing.
        figures = bench.measure([case for same in zip(*cases, strict=True) for case in same])
    sections = [Section("scale", kind, figures, scale.references(sizes))]
    if kind == "postgresql":
        with bench.stage(kind) as stage:
            staff = [stage.worker(concurrency=1) for _ in range(2 if bench.quick else 4)]
            figures = bench.measure(scale.workers(stage, staff, quick=bench.quick))
        sections.append(Section("scale: workers", kind, figures, all_in(figures, next(iter(figures)))))
    return sections


def _looks(bench: Bench, kind: str) -> list[Section]:
    sizes = scale.sizes(bench.quick, bench.million)
    with ExitStack() as stack:
        cases = []
        for size in sizes:
            database = stack.enter_context(bench.database(kind))
            bodies = stack.enter_context(on(database.url))
            bench.progress(f"putting {size:,} to sleep")
            bodies.runtime.database.check_schema()
            populate(database.engine(), bodies.runtime.settings.namespace, size, 0, size // 10, bare=True)
            cases += looks.cases(bodies, size, quick=bench.quick)
        figures = bench.measure(cases)
    return [Section("looks", kind, figures, looks.references(sizes), list(looks.REMARKS))]


def _recovery(bench: Bench, kind: str) -> list[Section]:
    with bench.stage(kind) as stage, bench.stage(kind) as other:
        figures = bench.measure(recovery.cases(stage, other))
    return [Section("recovery", kind, figures, {}, [f"Killed workers: durable_lease_timeout = {recovery.LEASE:g}."])]


def _waits(bench: Bench, kind: str) -> list[Section]:
    with bench.stage(kind) as stage:
        figures = bench.measure(waits.cases(stage, quick=bench.quick))
    with bench.stage(kind) as stage:
        bench.progress("weighing sleepers")
        weights = waits.memory(stage, quick=bench.quick)
    return [
        Section("waits", kind, figures, {}, list(waits.WAKING)),
        Section("waits: memory", kind, weights, all_in(weights, waits.EMPTY), list(waits.WEIGHING)),
    ]


def _peers(bench: Bench, kind: str) -> list[Section]:
    if kind != "postgresql" or not bench.peers:
        return []
    with ExitStack() as stack:
        bodies, ground = stack.enter_context(bench.bodies(kind))
        programs = []
        for name in bench.peers:
            database = stack.enter_context(bench.database(kind)).url.replace("postgresql+psycopg", "postgresql", 1)
            try:
                program = Program(PEERS[name], database, bench.folder(), bench.progress)
            except NotInstallable as error:
                bench.missing[f"peer {name}"] = str(error)
                continue
            stack.callback(program.close)
            bench.versions[name] = program.version
            programs.append(program)
        figures = bench.measure(peers.cases(bodies, ground, programs, quick=bench.quick))
    return [Section("peers", kind, figures, peers.references(figures), peers.REMARKS)]


#: Name → what measures it on one database.
SUITES: dict[str, Callable[[Bench, str], list[Section]]] = {
    "floor": _floor,
    "steps": _steps,
    "disk": _disk,
    "replay": _replay,
    "endtoend": _endtoend,
    "scale": _scale,
    "looks": _looks,
    "recovery": _recovery,
    "waits": _waits,
    "peers": _peers,
}
