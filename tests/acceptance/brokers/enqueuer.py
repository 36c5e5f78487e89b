"""A process that writes an order, and enqueues what the order needs, in one transaction of its own."""

from __future__ import annotations

import sqlalchemy as sa
from celery import chain, chord
from sqlalchemy.orm import Session

from celery_durable import enqueue

from .app import add, app, note, total

orders = sa.Table("shop_order", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))

#: The executions of durable tasks that come of it.
DURABLE = ("add-1", "member-1", "member-2", "after-2", "body")
#: What the chord comes to.
TOTAL = (1 + 2) + (10 + 20 + 5)


def main() -> None:
    """A durable task, one that is not, and a chord, one of whose members is a chain."""
    members = [
        add.s(1, 2).set(task_id="member-1"),
        chain(add.s(10, 20).set(task_id="member-2"), add.s(5).set(task_id="after-2")),
    ]
    with Session(sa.create_engine(app.conf.durable_database_url)) as session, session.begin():
        session.execute(sa.insert(orders).values(id=1))
        enqueue(session, add, (1, 1), task_id="add-1")
        enqueue(session, note, ("plain",))
        enqueue(session, chord(members, total.s().set(task_id="body")))


if __name__ == "__main__":
    main()
