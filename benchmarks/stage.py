"""Real workers on a database and a broker, and a client that sends to them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from celery import Celery

from celery_durable.store import migrations
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.worker import WorkerFactory, WorkerProcess

from .app import RECORD, STAMPS
from .floor import floor

__all__ = ["APP", "Stage", "on_stage"]

APP = "benchmarks.app"
#: Longest wait for a worker, in seconds; it only ends a run that would otherwise hang.
_PATIENCE = 120.0


class Stage:
    """A database, a broker, and any number of workers on them.

    :param folder: for the workers' logs and stamps.
    """

    def __init__(self, database: JournalDatabase, broker: MessageBroker, folder: Path) -> None:
        self.database = database
        self.broker = broker
        self.ledger = Ledger(folder / "ledger.jsonl")
        self._workers = WorkerFactory(folder)
        self._stamps = folder / "stamps"
        self._stamps.touch()
        self._names = (f"load-{number}" for number in itertools.count(1))
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(broker.conf, task_ignore_result=True)
        migrations.upgrade(database.url)
        with floor(database.url):
            pass  # its table is there before any worker measures

    def close(self) -> None:
        """End the workers."""
        self._workers.end()
        self.client.close()

    def worker(self, *, concurrency: int = 2, **durable: Any) -> WorkerProcess:
        """A prefork worker with Celery's usual settings."""
        env = {**self.ledger.env, STAMPS: str(self._stamps)}
        settings = {"task_ignore_result": True, **durable}
        confs = (self.broker.conf, self.database.conf)
        return self._workers(APP, *confs, conf=settings, env=env, concurrency=concurrency, loglevel="INFO")

    def send(self, task: str, *args: Any, queue: str | None = None, **options: Any) -> None:
        """Publish a task of the application."""
        self.client.send_task(f"{APP}.{task}", args, queue=queue or self.broker.queue, **options)

    # -- what is measured ------------------------------------------------------------------------------------

    def throughput(
        self,
        task: str,
        argument: int,
        tasks: int,
        workers: Sequence[WorkerProcess],
        watch: AbstractContextManager[None] | None = None,
    ) -> float:
        """Tasks per second of workers that find their queue full: the first and last tenth are not counted.

        :param watch: entered when the queue is full, and left when all tasks are done.
        """
        queue = self.broker.another_queue(next(self._names))
        with self.client.producer_or_acquire() as producer:
            for _ in range(tasks):
                self.send(task, argument, queue=queue, producer=producer)
        names = [worker.hostname for worker in workers]
        before = self._ended
        with watch or nullcontext():
            # Nobody waits for the workers' answer: those on Redis take half a second for one.
            self.client.control.add_consumer(queue, destination=names)
            self._await(before + tasks)
        self.client.control.cancel_consumer(queue, destination=names)
        moments = self._moments(before)
        edge = max(1, tasks // 10)
        return (tasks - 2 * edge) / (moments[-edge - 1] - moments[edge - 1])

    def latency(self, task: str, argument: int) -> float:
        """Seconds from publishing to the end of one task, while nothing else is to be done."""
        before = self._ended
        begin = time.time()
        self.send(task, argument)
        self._await(before + 1)
        return self._moments(before)[0] - begin

    def work(self, task: str, argument: int, tasks: int) -> None:
        """Have tasks done, as fast as it goes."""
        before = self._ended
        for _ in range(tasks):
            self.send(task, argument)
        self._await(before + tasks)

    # -- stamps ----------------------------------------------------------------------------------------------

    @property
    def _ended(self) -> int:
        return os.stat(self._stamps).st_size // RECORD.size

    def _await(self, ended: int) -> None:
        logs = self._workers.logs
        eventually(lambda: self._ended >= ended, _PATIENCE, f"tasks are missing; {logs(20)}", interval=0.001)

    def _moments(self, skip: int) -> list[float]:
        with self._stamps.open("rb") as file:
            file.seek(skip * RECORD.size)
            return sorted(moment for (moment,) in RECORD.iter_unpack(file.read()))


@contextmanager
def on_stage(lend_database: Callable[[Path], Any], lend_broker: Callable[[Path], Any], folder: Path) -> Iterator[Stage]:
    """A stage for as long as the block lasts; nothing of it runs on afterwards."""
    folder.mkdir(parents=True)
    with lend_database(folder) as database, lend_broker(folder) as broker:
        stage = Stage(database, broker, folder)
        try:
            yield stage
        finally:
            stage.close()
