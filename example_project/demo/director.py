"""Runs the demo from an empty stage to the evidence."""

from __future__ import annotations

import shlex
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import click

from ..config import Config
from ..shop import PRICES, Shop, invent_orders
from .audit import Evidence
from .chaos import Chaos, Kill
from .display import Progress
from .events import EventLog
from .journal import Journal
from .observer import Observer, read_books
from .options import Options
from .people import People
from .replays import read_replays
from .shopfront import Shopfront
from .stage import Stage, StageError

STOCK = 10_000
#: Seconds between two rounds of the director, each of which submits one order at most.
ROUND = 0.03
#: Orders per pool process that are open at the same time. Customers come one after the other; and an order that was
#: interrupted has to queue behind the others, which would hide how soon it could go on.
OPEN = 1
#: Seconds for which the ledgers are left alone after the last order: what comes late must be seen, too.
SETTLE = 1.5
MARKER = "made-by-the-demo"


@dataclass(frozen=True)
class Outcome:
    """What a run found out."""

    evidence: Evidence
    seconds: float
    #: Workers that ended by themselves.
    lost_workers: list[str]
    #: Moment of the flush, in seconds after the start.
    flushed_at: float | None


def prepare(directory: Path) -> None:
    """Make the working directory, new; only one that an earlier demo made is removed."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / MARKER).exists():
            raise click.ClickException(f"{directory} exists and was not made by the demo; choose another with --dir.")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARKER).touch()


def environment(config: Config, run: str, options: Options) -> dict[str, str]:
    """The variables that the shop's processes get; a namespace of its own keeps runs apart on shared servers."""
    return {
        "SHOP_DIR": str(config.directory),
        "SHOP_NAMESPACE": f"shop-{run}",
        "BROKER": config.broker,
        "DATABASE": config.database,
        "RESULT_BACKEND": config.result_backend,
        "OUTBOX": "1" if config.outbox else "0",
        "LEASE_TIMEOUT": str(config.lease_timeout),
        "REMIND_AFTER": str(config.remind_after),
        "SHOP_SECRET": config.secret,
    }


class Director:
    """One run of the demo."""

    def __init__(self, config: Config, options: Options, progress: Progress) -> None:
        self.config, self.options, self.progress = config, options, progress
        self.run_id = uuid.uuid4().hex[:6]
        self.orders = invent_orders(options.orders, options.seed)
        self.ids: dict[int, str] = {}
        self.shop = Shop(config.shop_db)
        self.flushed_at: float | None = None

    def run(self) -> Outcome:
        """Start everything, kill, wait for the last order, and collect the evidence."""
        env = environment(self.config, self.run_id, self.options)
        self.shop.create(self.orders, STOCK)
        stage = Stage(self.config.directory, env, self.options.concurrency, self.options.seed)
        # The queue goes last: a worker that still lives would make it again.
        with Shopfront(env) as front, stage:
            urls = stage.start_services(self.options.latency, self.options.down, self.options.slow)
            self._write_env_file({**env, **urls})
            if not self.config.embedded_database:
                stage.upgrade_journal()
            stage.start_workers(self.options.workers)
            log, journal = EventLog(self.config.directory / "events.jsonl"), Journal(stage.env)
            self._wait_for_workers(stage, log)
            started = time.monotonic()
            chaos = Chaos(stage, log, self.options.kill_every, self.options.seed)
            observer = Observer(self.shop, journal, urls, self.ids, len(self.orders))
            people = People(urls["DESK_URL"], self.config.remind_after)
            self.progress.announce(self.options, urls["DESK_URL"])
            observer.start()
            if not self.options.by_hand:
                people.start()
            try:
                self._play(stage, chaos, observer, people, front, started)
            finally:
                people.stop()
                observer.stop()
            seconds = time.monotonic() - started
            time.sleep(SETTLE)
            stage.stop_workers()
            log.refresh()
            evidence = self._collect(journal, urls, chaos.kills, log)
        return Outcome(evidence, seconds, stage.lost_workers, self.flushed_at)

    def _write_env_file(self, env: dict[str, str]) -> None:
        file = self.config.directory / "env"
        file.touch(mode=0o600)
        file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items()))

    def _wait_for_workers(self, stage: Stage, log: EventLog, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while len(log.children) < self.options.workers * self.options.concurrency:
            log.refresh()
            dead = [worker for worker in stage.workers if not worker.alive]
            if dead or time.monotonic() > deadline:
                worker = (dead or stage.workers)[0]
                raise StageError(f"{worker.name} did not start; is BROKER right? Its log is {worker.log}")
            time.sleep(0.1)

    def _play(
        self, stage: Stage, chaos: Chaos, observer: Observer, people: People, front: Shopfront, started: float
    ) -> None:
        waiting = list(self.orders)
        deadline = started + self.options.timeout
        while not observer.done and time.monotonic() < deadline:
            if error := observer.error or people.error:
                raise error
            # Those that wait for somebody keep no process busy.
            open_orders = len(self.ids) - observer.snapshot.closed - observer.snapshot.questions
            if waiting and open_orders < OPEN * self.options.workers * self.options.concurrency:
                order = waiting.pop(0)
                execution = f"{order.reference}-{self.run_id}"
                front.submit(order, execution)
                self.ids[order.id] = execution
            chaos.tick()
            stage.restart_the_dead()
            third_through = observer.snapshot.closed * 3 >= len(self.orders)
            if self.options.flush and self.flushed_at is None and third_through:
                front.flush_broker()
                self.flushed_at = time.monotonic() - started
            self.progress.show(observer.snapshot, chaos.kills)
            time.sleep(ROUND)

    def _collect(self, journal: Journal, urls: dict[str, str], kills: list[Kill], log: EventLog) -> Evidence:
        executions = journal.executions()
        waits: dict[str, list[float]] = {"child": [], "worker": []}
        for kill in kills:
            again = [log.started_again(execution, kill.at) for execution in kill.interrupted]
            waits[kill.kind] += [at - kill.at for at in again if at is not None]
        return Evidence(
            orders=self.orders,
            ids=self.ids,
            executions=executions,
            steps=journal.steps(executions),
            gateway=read_books(urls["GATEWAY_URL"]),
            carrier=read_books(urls["CARRIER_URL"]),
            mailer=read_books(urls["MAILER_URL"]),
            desk=read_books(urls["DESK_URL"]),
            remind_after=self.config.remind_after,
            invoiced=self.shop.invoiced(),
            taken={sku: STOCK - self.shop.available()[sku] for sku in PRICES},
            reserved=self.shop.reserved(),
            replayed=read_replays(self.config.directory / "logs"),
            kills=kills,
            waits=waits,
        )
