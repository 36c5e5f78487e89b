"""An entry that a database does not take fails whose it is, and nobody else in the same process: on the real ones."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import EntryRefused, LeaseLost
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
from celery_durable.runtime.leases import Keeper
from celery_durable.store import Database, Journal, Ownership, migrations
from celery_durable.store.records import Birth, EffectCode, Entry, EntryKind, Fence, Opened, OpenRequest, StoredPayload
from celery_durable.store.tables import executions, journal, new_pk
from tests.support.databases import JournalDatabase

SOMETHING = StoredPayload(0, b"{}")

#: What cannot be stored, and where; the others take it as it is.
ANYWHERE = ("sqlite", "postgresql", "mysql")
BAD: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "half a character": (ANYWHERE, {"name": "\ud800"}),
    "a number without end": (ANYWHERE, {"position": 2**70}),
    "nothing at all": (ANYWHERE, {"name": None}),
    "a name too long": (("postgresql", "mysql"), {"name": "x" * 300}),
    "a zero": (("postgresql",), {"name": "a\0b"}),
    "a number too large": (("postgresql", "mysql"), {"entry": 2**40}),
}


class Process:
    """One process with a writer, as a worker's is."""

    def __init__(self, given: JournalDatabase) -> None:
        migrations.upgrade(given.url)
        self.database = Database(given.url, timeout=30)
        self.ownership = Ownership(self.database, namespace="refused", lease_ms=600_000, max_attempts=10)
        self.writer = JournalWriter(Journal(self.database, lease_ms=600_000), flush_interval=60, ack_timeout=60)

    def begin(self, name: str) -> ExecutionBuffer:
        opened = self.ownership.open(request(name))
        assert isinstance(opened, Opened)
        return ExecutionBuffer(opened.fence, 1, 0.0)

    def append(self, buffer: ExecutionBuffer, number: int, **bad: Any) -> None:
        usual = {"name": f"step {number}", "position": number, "entry": 0, **bad}
        entry = Entry("", usual["position"], usual["entry"], EntryKind.RESULT, EffectCode.EXACTLY_ONCE_GUARDED,
                      usual["name"], b"f" * 32, payload=SOMETHING)  # fmt: skip
        self.writer.append(buffer, entry, finishes=True)

    def flush(self, *buffers: ExecutionBuffer) -> dict[Fence, BaseException]:
        """All at the same time; what became of those that could not."""
        failed: dict[Fence, BaseException] = {}

        def one(buffer: ExecutionBuffer) -> None:
            try:
                self.writer.flush(buffer)
            except BaseException as error:
                failed[buffer.fence] = error

        threads = [threading.Thread(target=one, args=(buffer,)) for buffer in buffers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        return failed

    def written(self, buffer: ExecutionBuffer) -> list[str]:
        rows = sa.select(journal.c.name).where(journal.c.pk == buffer.fence.pk).order_by(journal.c.position)
        return self.database.read(lambda connection: list(connection.execute(rows).scalars()))

    def close(self) -> None:
        self.writer.timer.end()
        self.database.dispose()


def request(name: str) -> OpenRequest:
    return OpenRequest(name, "task", f"{uuid.uuid4()}", 0, lambda: SOMETHING)


@pytest.fixture
def process(database: JournalDatabase) -> Iterator[Process]:
    made = Process(database)
    yield made
    made.close()


@pytest.mark.parametrize("what", BAD)
def test_whose_entry_is_refused_fails_alone(process: Process, database: JournalDatabase, what: str) -> None:
    kinds, bad = BAD[what]
    if database.kind not in kinds:
        pytest.skip(f"{database.kind} takes it")
    many = [process.begin(f"e{number}") for number in range(8)]
    guilty = many[3]
    for buffer in many:
        for position in range(3):
            process.append(buffer, position, **(bad if (buffer, position) == (guilty, 1) else {}))
    failed = process.flush(*many)
    assert {fence: type(error) for fence, error in failed.items()} == {guilty.fence: EntryRefused}
    for buffer in many:
        wanted = ["step 0", "step 1", "step 2"]
        assert process.written(buffer) == (["step 0", "step 2"] if buffer is guilty else wanted)
    # The process goes on, and so do all others in it.
    with pytest.raises(EntryRefused):
        process.append(guilty, 3)
    others = [buffer for buffer in many if buffer is not guilty]
    for buffer in [*others, *(new := [process.begin("new")])]:
        process.append(buffer, 3)
    assert process.flush(*others, *new) == {}
    assert all(process.written(buffer)[-1] == "step 3" for buffer in others + new)


def born(id: str) -> ExecutionBuffer:  # noqa: A002
    """One whose row goes in with its first entries."""
    return ExecutionBuffer(Fence(new_pk(), 1), 1, 0.0, birth=Birth("refused", request(id)))


@pytest.mark.parametrize("entries", [0, 1, 3])
@pytest.mark.parametrize("id", ["\ud800", "i" * 300, "i\0i"], ids=["half a character", "too long", "a zero"])
def test_an_execution_whose_id_is_refused_fails_alone(
    process: Process,
    database: JournalDatabase,
    id: str,  # noqa: A002
    entries: int,
) -> None:
    """It comes from a publisher without this library, past every door."""
    if (id.isascii() and database.kind == "sqlite") or ("\0" in id and database.kind == "mysql"):
        pytest.skip(f"{database.kind} takes it")
    many, unborn = [process.begin(f"e{number}") for number in range(4)], born(id)
    process.writer.announce(unborn)
    for buffer in (*many[:2], unborn, *many[2:]):
        for number in range(entries if buffer is unborn else 2):
            process.append(buffer, number)
    failed = process.flush(*many, unborn)
    assert {fence: type(error) for fence, error in failed.items() if fence != unborn.fence} == {}
    assert isinstance(unborn.standing.refused, EntryRefused)
    assert [process.written(buffer) for buffer in many] == [["step 0", "step 1"]] * 4
    ids = process.database.read(lambda c: set(c.execute(sa.select(executions.c.id)).scalars()))
    assert ids == {f"e{number}" for number in range(4)}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("company", [0, 4])
def test_an_execution_whose_entry_is_refused_with_its_row_has_its_row(
    process: Process, place: int, company: int
) -> None:
    """Or it could not be parked, and would be taken for somebody else's."""
    guilty, others = born("guilty"), [born(f"other {number}") for number in range(company)]
    for buffer in (guilty, *others):
        process.writer.announce(buffer)
        for number in range(3):
            process.append(buffer, number, **({"name": "\ud800"} if (buffer, number) == (guilty, place) else {}))
    failed = process.flush(guilty, *others)
    assert {fence: type(error) for fence, error in failed.items()} == {guilty.fence: EntryRefused}
    assert process.written(guilty) == [f"step {number}" for number in range(3) if number != place]
    assert [process.written(buffer) for buffer in others] == [["step 0", "step 1", "step 2"]] * company


def test_what_is_said_of_it_holds_no_value(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    guilty = process.begin("guilty")
    secret = StoredPayload(0, b"a card's number")
    entry = Entry("", 0, 0, EntryKind.RESULT, EffectCode.EXACTLY_ONCE_GUARDED, None, b"f" * 32, payload=secret)  # type: ignore[arg-type]
    process.writer.append(guilty, entry)
    with pytest.raises(EntryRefused) as refused:
        process.writer.flush(guilty)
    said = str(refused.value) + caplog.text
    assert "card" not in said
    assert secret.data.hex() not in said


def test_what_an_execution_left_that_cannot_be_written_stops_no_renewal(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, left = process.begin("live"), process.begin("left")
    keeper = Keeper(process.ownership, lease_timeout=600, lifeline=NoLifeline())  # type: ignore[arg-type]
    keeper.end()  # the test beats itself
    keeper.hold(live)
    process.append(left, 0, name="\ud800")
    let_go: list[str] = []

    def release() -> None:
        let_go.append("left")
        raise LeaseLost("somebody else has it")

    keeper.abandon(left, process.writer, release)
    keeper._retire()
    lapse = sa.update(executions).where(executions.c.id == "live").values(lease_until=1)
    process.database.write(lambda connection: connection.execute(lapse))
    keeper.renew()
    until = sa.select(executions.c.lease_until).where(executions.c.id == "live")
    assert process.database.read(lambda c: c.execute(until).scalar_one()) > 1
    assert let_go == ["left"]


class NoLifeline:
    """Nobody listens."""

    held = True

    def hold(self, *_: Any) -> None:
        pass
