"""Whoever can write to the database gets no code run by those who send, wake, examine or show what he has written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import celery_durable
from celery_durable import DurableContext, doctor
from celery_durable.errors import JournalCorrupted, PayloadError
from celery_durable.messaging import envelope
from celery_durable.store.records import PayloadKind, StoredPayload
from celery_durable.store.tables import executions, payloads
from celery_durable.worker.service import Service
from tests.support.delivery import Delivery
from tests.support.lab import Lab, everywhere

pytestmark = everywhere

QUEUE = "forged-messages"


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def forged(evil: bytes, **parts: Any) -> dict[str, Any]:
    return {
        "headers": {"task": "job", "id": "one"},
        "properties": {},
        "body": evil,
        "content_type": "application/x-python-serialize",
        "content_encoding": "binary",
        "serializer": "pickle",
        "compression": None,
        "route": {"queue": QUEUE},
        **parts,
    }


def overwrite(lab: Lab, kind: PayloadKind, value: Any, **columns: Any) -> None:
    """What somebody with a read-write role can do."""
    [pk] = lab.runtime.database.read(lambda c: c.execute(sa.select(executions.c.pk)).scalars().all())
    codec, data = lab.runtime.envelope_codec.encode(value)

    def attack(connection: Any) -> None:
        connection.execute(sa.delete(payloads).where(payloads.c.pk == pk, payloads.c.kind == int(kind)))
        connection.execute(sa.insert(payloads).values(pk=pk, kind=int(kind), codec=codec, data=data))
        if columns:
            connection.execute(sa.update(executions).where(executions.c.pk == pk).values(**columns))

    lab.runtime.database.write(attack)


def waiting(deliver: Delivery) -> tuple[str, str]:
    """An execution that waits for a promise; the promise's id and token."""
    told: list[tuple[str, str]] = []

    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        told.append((promise.id, promise.token))
        return ctx.wait(promise)

    deliver.suspends(body)
    return told[-1]


def sent(lab: Lab) -> list[Any]:
    """What the broker has been given."""
    with lab.app.connection_for_read() as connection:
        channel = connection.channel()
        lab.app.amqp.queues[QUEUE](channel).declare()
        return list(iter(lambda: channel.basic_get(QUEUE, no_ack=True), None))


def test_no_message_is_read_by_those_who_only_pass_it_on(lab: Lab, deliver: Delivery, tmp_path: Path) -> None:
    trap = tmp_path / "pwned"
    lab.app.conf.update(accept_content=["json"])
    promise, token = waiting(deliver)
    overwrite(lab, PayloadKind.ENVELOPE, forged(pickle.dumps(Evil(str(trap)))), wake_at=1, created_at=1)

    for _ in doctor.examine(doctor.Patient(lab.app)):
        pass
    Service(lab.app).round()
    celery_durable.resolve(promise, token, True, app=lab.app)
    celery_durable.get("one", lab.app).cancel("enough")
    with pytest.raises(PayloadError, match="does not accept"):
        celery_durable.get("one", lab.app).rerun()
    assert not trap.exists()
    # It was sent as it is, and what it says of itself goes with it: a worker refuses it.
    messages = sent(lab)
    assert messages, "recovery does not hold it back either"
    assert {message.content_type for message in messages} == {"application/x-python-serialize"}
    assert all(message.body == pickle.dumps(Evil(str(trap))) for message in messages)


@pytest.mark.parametrize(
    "parts",
    [
        {"headers": {"task": "job"}},
        {"headers": "none"},
        {"route": {"queue": QUEUE, "declare": [1]}},
        {"properties": {"serializer": "pickle"}},
        {"before": ["set_chord_size"]},
        {"body": 5},
    ],
    ids=str,
)
def test_a_message_with_other_parts_is_damaged(lab: Lab, deliver: Delivery, parts: dict[str, Any]) -> None:
    waiting(deliver)
    overwrite(lab, PayloadKind.ENVELOPE, forged(b"[[],{},{}]", content_type="application/json", **parts), wake_at=1)
    Service(lab.app).round()
    assert sent(lab) == [], "nor does it stop the service"
    stored = StoredPayload(*lab.runtime.envelope_codec.encode(forged(b"", **parts)))
    with pytest.raises(JournalCorrupted):
        envelope.unpack(stored, lab.runtime.envelope_codec)
    celery_durable.get("one", lab.app).cancel("it can be got rid of")
    with pytest.raises(JournalCorrupted):
        celery_durable.get("one", lab.app).rerun()


def test_a_forged_outcome_is_not_unpickled(lab: Lab, tmp_path: Path) -> None:
    trap = tmp_path / "pwned"
    lab.run(lambda ctx: 1)
    data = pickle.dumps(Evil(str(trap)))
    outcome = {"content_type": "application/x-python-serialize", "encoding": "binary", "data": data}
    overwrite(lab, PayloadKind.OUTCOME, outcome)
    with pytest.raises(PayloadError, match="does not accept"):
        celery_durable.get("one", lab.app).result(5)
    assert not trap.exists()


def test_a_state_that_there_is_not_is_damage(lab: Lab) -> None:
    lab.run(lambda ctx: 1)
    handle = celery_durable.get("one", lab.app)
    lab.runtime.database.write(lambda c: c.execute(sa.update(executions).values(state="owned")))
    for ask in (handle.status, handle.steps, lambda: handle.cancel("x"), lambda: celery_durable.get("one", lab.app)):
        with pytest.raises(JournalCorrupted, match="'owned'"):
            ask()
