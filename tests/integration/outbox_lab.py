"""An application that enqueues in its own transactions, and looks at what came of it: rows, and messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import sqlalchemy as sa
from celery import Celery
from kombu.message import Message
from sqlalchemy.orm import Session

from celery_durable import DurableTask
from celery_durable.runtime import Runtime
from celery_durable.store import migrations
from celery_durable.store.tables import executions, outbox
from celery_durable.worker.service import Service
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase

__all__ = ["Shop"]

orders = sa.Table("shop_order", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))


class Shop:
    """Tasks, the user's own engine and table, a broker, and a recovery service that runs when the test says so."""

    def __init__(self, database: JournalDatabase, broker: MessageBroker, **settings: Any) -> None:
        self.broker = broker
        self.app = Celery("outbox", set_as_current=False)
        self.app.conf.update(**broker.conf, **database.conf, **settings)
        self.app.conf.update(task_publish_retry=False, broker_connection_timeout=1)
        migrations.upgrade(database.url)
        #: The user's own way to the same database.
        self.engine = sa.create_engine(database.url)
        orders.create(self.engine, checkfirst=True)
        self.durable = self.task("durable", lambda *a, **k: list(a), base=DurableTask)
        self.plain = self.task("plain", lambda *a, **k: list(a))
        self.total = self.task("total", lambda numbers: sum(sum(n) if isinstance(n, list) else n for n in numbers))
        self.service = Service(self.app)

    def task(self, name: str, function: Any, **options: Any) -> Any:
        function.__name__ = name
        return self.app.task(function, name=name, shared=False, **options)

    def close(self) -> None:
        self.service._disconnect()
        Runtime.of(self.app).end()
        self.engine.dispose()
        self.app.close()

    # -- the user's side ------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, kind: str) -> Iterator[Any]:
        """A Session or Connection with a transaction that commits at the end."""
        if kind == "session":
            with Session(self.engine) as session, session.begin():
                yield session
        else:
            with self.engine.begin() as connection:
                yield connection

    def order(self, where: Any, number: int) -> None:
        where.execute(sa.insert(orders).values(id=number))

    def orders(self) -> set[int]:
        with self.engine.connect() as connection:
            return set(connection.execute(sa.select(orders.c.id)).scalars())

    # -- what came of it ------------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, str]]:
        """Id and task of what is recorded, executions and outbox, in the order of their keys."""
        with self.engine.connect() as connection:
            found = [
                *connection.execute(sa.select(executions.c.pk, executions.c.id, executions.c.task)),
                *connection.execute(sa.select(outbox.c.pk, outbox.c.id, outbox.c.task)),
            ]
        return [(row.id, row.task) for row in sorted(found, key=lambda row: row.pk)]

    def unsent(self) -> int:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()

    def due(self) -> None:
        """Time passes: recovery sends what is still recorded as unsent."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(executions).values(wake_at=1))
            connection.execute(sa.update(outbox).values(wake_at=1))

    def recover(self) -> None:
        """What was sent at once is lost; recovery sends what it knows of."""
        self.broker.flush()
        self.due()
        self.service.round()

    def messages(self, queue: str | None = None) -> list[Message]:
        """The messages in a queue, taken out of it."""
        found = []
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            bound = kombu.Queue(queue or self.broker.queue)(channel)
            bound.declare()
            while (message := bound.get(no_ack=True)) is not None:
                found.append(message)
        return found

    def sent(self, queue: str | None = None) -> list[tuple[str, list[Any]]]:
        """Task and arguments of each message."""
        return [(m.headers["task"], json.loads(m.body)[0]) for m in self.messages(queue)]
