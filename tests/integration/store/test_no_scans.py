"""No question of the library costs more because the journal is long, or because many sleep in it.

Every method of the stores, every check of the doctor, is called on a journal with a crowd in it, and the database is
asked what each statement looked at. What is not called here, or asks the tables elsewhere, fails the test.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery

import celery_durable
from celery_durable import doctor
from celery_durable.doctor import executions as checks_of_executions
from celery_durable.doctor.checks import Patient
from celery_durable.errors import WrongState
from celery_durable.identity import child_of
from celery_durable.store import Database, Operations, OutboxStore, RecoveryStore, RetentionStore, migrations
from celery_durable.store import latest as listing
from celery_durable.store.cancel_many import cancel_unbegun
from celery_durable.store.children import ChildEnd
from celery_durable.store.decisions import settle_and_note
from celery_durable.store.journal import Journal
from celery_durable.store.outbox import insert, new_pks, present
from celery_durable.store.ownership import Ownership
from celery_durable.store.promises.promises import Promises
from celery_durable.store.records import (
    META,
    Awaited,
    Awaiting,
    Batch,
    EffectCode,
    Entry,
    EntryKind,
    Fence,
    NewChild,
    NewPromise,
    Offspring,
    Opened,
    OpenRequest,
    PayloadKind,
    PromiseState,
    Published,
    State,
    StoredPayload,
    Unsent,
)
from celery_durable.store.retention import Right
from celery_durable.store.tables import executions
from tests.support.crowd import populate
from tests.support.databases import JournalDatabase
from tests.support.effort import Effort

CROWD = 10_000
#: Rows that a statement may look at, whatever there is besides: those of a page of all states, and some. SQLite's are a
#: guess from below.
BOUND = 3_000
PAYLOAD = StoredPayload(17, b"{}")
NAMESPACE = "crowd"
LEASE = 30_000

STORES = (RecoveryStore, OutboxStore, RetentionStore, Operations, Promises, Journal, Ownership)
#: What needs no call of its own.
ELSEWHERE = {
    "Journal.append_in": "within an operation's own transaction, as append() does",
}


class Scene:
    """Executions in every state that the stores can be asked about."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.recovery = RecoveryStore(database, namespace=NAMESPACE, lease_ms=LEASE, max_attempts=3)
        self.outbox = OutboxStore(database, namespace=NAMESPACE, lease_ms=LEASE)
        self.retention = RetentionStore(database, namespace=NAMESPACE)
        self.operations = Operations(database, namespace=NAMESPACE)
        self.promises = Promises(database)
        self.journal = Journal(database, lease_ms=LEASE)
        self.ownership = Ownership(database, namespace=NAMESPACE, lease_ms=LEASE, max_attempts=3)

    def name(self) -> str:
        return str(uuid.uuid4())

    def open(self, name: str | None = None, **options: Any) -> Opened:
        name = name or self.name()
        request = OpenRequest(name, "job", f"host:{uuid.uuid4().hex}", 0, lambda: PAYLOAD, **options)
        opened = self.ownership.open(request)
        assert isinstance(opened, Opened)
        return opened

    def started(self, *entries: Entry, name: str | None = None) -> Opened:
        """One that runs, with a row."""
        opened = self.open(name)
        batch = Batch(opened.fence, 1, entries or (step(0),), birth=opened.birth)
        assert not self.journal.append([batch])
        return opened

    def id_of(self, opened: Opened) -> str:
        query = sa.select(executions.c.id).where(executions.c.pk == opened.fence.pk)
        return str(self.database.read(lambda c: c.execute(query).scalar_one()))

    def suspended(self, *entries: Entry, awaiting: Awaiting | None = None, name: str | None = None) -> Opened:
        opened = self.started(*entries, name=name)
        self.ownership.suspend(empty(opened), opened.owner, delay_ms=LEASE, retries=0, awaiting=awaiting)
        return opened

    def due(self, opened: Opened) -> None:
        change = sa.update(executions).where(executions.c.pk == opened.fence.pk).values(wake_at=1)
        self.database.write(lambda c: c.execute(change))


def step(position: int, kind: EntryKind = EntryKind.RESULT, entry: int = 0, **values: Any) -> Entry:
    values = {"effect": EffectCode.IDEMPOTENT, "payload": PAYLOAD, "fingerprint": b"f" * 32, **values}
    return Entry("", position, entry, kind, name="step", **values)


def guarded(position: int, kind: EntryKind, entry: int = 0) -> Entry:
    return step(position, kind, entry, effect=EffectCode.EXACTLY_ONCE_GUARDED, key=b"k" * 32)


def empty(opened: Opened) -> Batch:
    return Batch(opened.fence, 1, ())


def promise_entry(promise: NewPromise) -> Entry:
    return Entry("", 0, 0, EntryKind.PROMISE, None, promise.name, payload=PAYLOAD, promise=promise)


# -- what is asked ------------------------------------------------------------------------------------------------


def recovery(scene: Scene) -> None:
    store = scene.recovery
    assert not store.claim(100).due
    slept = [scene.suspended() for _ in range(3)]
    for one in slept:
        scene.due(one)
    claims = store.claim(100)
    assert len(claims.due) == 3
    store.unsent([one.pk for one in claims.due], 10)
    assert not store.claim(100, spare_owners=lambda: True).parked
    running = scene.started()
    assert store.forsake(running.owner) == 1
    assert store.forsake("nobody:") == 0
    keys = store.publish([Published(scene.name(), "job", 0, PAYLOAD) for _ in range(3)])
    chosen = Published(scene.name(), "job", 0, PAYLOAD, args_hash=b"h" * 32)
    assert store.publish([chosen])
    assert store.publish([chosen]) == [None]
    assert keys[0] is not None
    store.adopt(keys[0], b"h" * 32)


def outbox(scene: Scene) -> None:
    store = scene.outbox
    assert store.claim(100) == []
    rows = [Unsent(scene.name(), "plain", PAYLOAD) for _ in range(3)]

    def record(connection: sa.Connection) -> list[int]:
        keys = insert(connection, NAMESPACE, 0, rows, settle=lambda taken: None)
        assert present(connection, [], keys) == set(keys)
        return keys

    scene.database.write(record)
    claimed = store.claim(100)
    assert len(claimed) == 3
    store.unsent([claimed[0].pk], 10)
    store.sent([one.pk for one in claimed])


def retention(scene: Scene) -> None:
    store = scene.retention
    assert store.take("me", 1000) is not None
    held = store.take("me", 1000)
    assert held is not None
    right = Right("me", 1000, "{}")
    store.keep(right)
    assert held.now <= store.now()
    rows = [row for row in store.look(0, 2**63 - 1, 40) if row.ours]
    assert rows
    assert store.look_back(2**63 - 1, 40)
    whole = [row for row in rows if row.settled and row.pruned is None]
    assert store.weigh([row.pk for row in rows[:10]])
    assert len(store.prune(whole[:5], right)) == 5
    assert store.prune_slice(whole[5], 1) in (True, False)
    dead = [row for row in store.look(0, 2**63 - 1, 40) if row.pruned is not None]
    assert store.forgettable(dead[:5], None) == 5
    store.leftovers([row.pk for row in dead])
    assert store.forget(dead[:5], None, right) == 5


def looking(scene: Scene) -> None:
    store = scene.operations
    execution = store.get("sleeper-7")
    for states in ((), (State.FAILED,), (State.AMBIGUOUS, State.QUARANTINED), (State.SUSPENDED, State.COMPLETED)):
        for task in (None, "task-1", "task-of-nobody"):
            for pruned in (False, True):
                page = store.find(states=states, task=task, limit=20, pruned=pruned)
                if page:
                    store.find(states=states, task=task, limit=20, pruned=pruned, before_pk=page[-1].pk)
    assert store.entries(execution.pk, 1)
    assert store.entries(execution.pk, 1, values=False)
    assert store.generations(execution.pk) == [1]
    assert store.aborts(execution.pk) == {}
    store.doubts(execution)
    assert not store.is_eager(execution.pk)
    assert store.namespace_of(execution.pk) == NAMESPACE
    assert store.payload(execution.pk, PayloadKind.ENVELOPE) is not None
    assert scene.database.read(listing.namespaces) == [NAMESPACE]
    assert scene.database.read(lambda c: listing.count(c, NAMESPACE, list(State), 100)) == 100


def settling(scene: Scene) -> None:
    store = scene.operations
    store.cancel(scene.id_of(scene.suspended()), "no need")
    marked = scene.suspended(Entry(META, 0, 0, EntryKind.SAGA, None, "saga"))
    store.cancel(scene.id_of(marked), "no need")
    assert store.fail(scene.id_of(scene.started()), PAYLOAD, "it failed")
    failing = scene.started(Entry(META, 0, 0, EntryKind.SAGA, None, "saga"))
    assert store.fail(scene.id_of(failing), PAYLOAD, "it failed")
    assert not store.fail("nobody", PAYLOAD, "it failed")
    parked = scene.started(guarded(0, EntryKind.INTENT))
    audit = Batch(parked.fence, 1, (guarded(0, EntryKind.AUDIT, 1),))
    scene.ownership.park(audit, parked.owner, State.AMBIGUOUS, PAYLOAD)
    store.resolve(scene.id_of(parked), "", 0, EntryKind.RESULT, PAYLOAD, note=PAYLOAD)
    broken = scene.started()
    scene.ownership.park(empty(broken), broken.owner, State.QUARANTINED, PAYLOAD)
    store.resume(scene.id_of(broken))
    with pytest.raises(WrongState):
        store.resume("sleeper-1")


def promises(scene: Scene) -> None:
    store = scene.promises
    ours = [NewPromise(uuid.uuid4().hex, "answer", b"t" * 32, 1, 1000) for _ in range(3)]
    made = [promise_entry(one)._replace(position=number) for number, one in enumerate(ours)]
    ids = tuple(one.id for one in ours)
    waiting = scene.suspended(*made, awaiting=Awaiting((Awaited(ids, 2),), 1000))
    pk = waiting.fence.pk
    store.restore(pk, [NewPromise(uuid.uuid4().hex, "late", b"t" * 32)])
    assert len(store.of([pk])) == 4
    assert store.target(ids[0]) is not None
    assert store.target("nobody") is None
    store.beat(ids[0], pk)
    store.settle(ids[0], pk, PromiseState.RESOLVED, PAYLOAD, namespace=NAMESPACE)
    settle_and_note(scene.database, ids[1], pk, PromiseState.RESOLVED, PAYLOAD, note=PAYLOAD, namespace=NAMESPACE)
    assert len(store.look(ids).rows) == 3
    assert len(store.look(ids, values=False).rows) == 3
    store.look([])
    store.expire(ids)


def journal(scene: Scene) -> None:
    store = scene.journal
    opened = scene.started(step(0), guarded(1, EntryKind.INTENT), guarded(1, EntryKind.RESULT, 1))
    pk = opened.fence.pk
    again = Batch(opened.fence, 1, (step(2),), again=True)
    store.append([again])
    assert store.is_in(again)
    assert store.verify(opened.fence)
    other = scene.started()
    store.append([Batch(one.fence, 1, (step(5),)) for one in (opened, other)])
    assert store.segment(pk, 1, "", 0, 100)
    assert store.beginnings(pk, 1, ["", *(f"4.{number}" for number in range(100))], 100)
    assert store.of_kind(EntryKind.RESULT, pk, 1, 1)
    assert store.scopes(pk, 1)
    intent = guarded(7, EntryKind.INTENT)._replace(key=uuid.uuid4().bytes * 2)
    assert store.append_global(empty(opened), intent) is None
    assert store.append_global(empty(other), intent) is not None
    fold = Entry("", 0, 0, EntryKind.CHECKPOINT, None, "checkpoint", payload=PAYLOAD)
    assert store.fold(Batch(opened.fence, 1, (fold,)), 1)


def looking_back(scene: Scene) -> None:
    store = scene.journal
    opened = scene.started(step(0), guarded(1, EntryKind.INTENT), guarded(1, EntryKind.RESULT, 1))
    assert store.guarded(opened.fence.pk, 1, 1)
    assert store.outcomes(opened.fence.pk, 1, 1)
    assert len(store.group(opened.fence.pk, 1, "", 1)) == 2


def ownership(scene: Scene) -> None:
    store = scene.ownership
    opened = scene.open(fresh=True)
    assert opened.birth is not None
    store.finish(empty(opened)._replace(birth=opened.birth), opened.owner, State.COMPLETED, PAYLOAD)
    store.mark_dispatched([opened.fence.pk])
    running = [scene.started() for _ in range(3)]
    assert store.renew([one.fence for one in running]) == []
    assert store.renew([Fence(one.fence.pk, 9) for one in running]) != []
    store.release(empty(running[0]), running[0].owner)
    abort = Entry("#aborted", 0, 0, EntryKind.ABORTED, None, "aborted", payload=PAYLOAD)
    assert store.restart(empty(running[1]), abort) == 2
    assert store.vanished("nobody")
    store.count_death(scene.id_of(running[2]))
    name = scene.id_of(running[0])
    store.open(OpenRequest(name, "job", "host:9", 0, lambda: PAYLOAD))
    store.open(OpenRequest(name, "job", "host:10", 0, lambda: PAYLOAD, pk=running[0].fence.pk))


def children(scene: Scene) -> None:
    one = NewPromise(uuid.uuid4().hex, "child")
    [key] = new_pks(1)
    born = Offspring(NAMESPACE, LEASE, (NewChild(one, ((key, Published(child_of(one.id), "job", 0, PAYLOAD)),)),))
    call = Entry("", 0, 0, EntryKind.CALL, None, "child", payload=PAYLOAD, offspring=born)
    scene.suspended(call, awaiting=Awaiting((Awaited((one.id,), 1),), None))
    child = scene.open(child_of(one.id))
    end = ChildEnd(one.id, PromiseState.RESOLVED, PAYLOAD, NAMESPACE)
    assert scene.ownership.finish(empty(child), child.owner, State.COMPLETED, PAYLOAD, child=end) is not None
    several = [NewPromise(uuid.uuid4().hex, "child") for _ in range(3)]
    messages = [((new_pks(1)[0], Published(child_of(p.id), "job", 0, PAYLOAD)),) for p in several]
    born = Offspring(NAMESPACE, LEASE, tuple(NewChild(p, m) for p, m in zip(several, messages, strict=True)))
    scene.started(call._replace(offspring=born))
    ids = [child_of(p.id) for p in several]
    assert set(cancel_unbegun(scene.database, NAMESPACE, ids, "no need")) == set(ids)


def examining(scene: Scene) -> None:
    app = Celery("crowd", set_as_current=False, broker="memory://")
    app.conf.durable_database_url = scene.database.url.render_as_string(hide_password=False)
    app.conf.durable_namespace = NAMESPACE
    found = list(doctor.examine(Patient(app)))
    assert any(finding.code == "CD947" for finding in found)


SCENES: tuple[Callable[[Scene], None], ...] = (
    recovery,
    outbox,
    retention,
    looking,
    settling,
    promises,
    journal,
    looking_back,
    ownership,
    children,
    examining,
)


@pytest.fixture
def scene(database: JournalDatabase) -> Iterator[Scene]:
    engine = database.engine()
    migrations.upgrade(engine)
    populate(engine, NAMESPACE, CROWD, CROWD, CROWD)
    journal_database = Database(database.url, timeout=30)
    assert journal_database.engine
    # The shortcuts say the same as the way around them, and that one can be watched.
    journal_database._driver = None
    yield Scene(journal_database)
    journal_database.dispose()


def test_every_question_is_answered_by_an_index(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks_of_executions, "_LOOKED_AT", 100)
    monkeypatch.setattr(checks_of_executions, "_MANY", 100)
    monkeypatch.setattr(checks_of_executions, "_MOST", 100)
    called = watch_methods(monkeypatch)
    effort = Effort()
    with effort.watched():
        for ask in SCENES:
            before = len(effort.spent)
            ask(scene)
            assert len(effort.spent) > before, f"{ask.__name__} asked nothing"
    wasteful = [spent for spent in effort.spent if spent.rows > BOUND or spent.scanned]
    assert not wasteful, "\n\n".join(dict.fromkeys(map(str, wasteful)))
    known = {f"{store.__name__}.{name}" for store in STORES for name in methods(store)}
    assert known - called == set(ELSEWHERE), "call it in a scene"


def test_the_watch_sees_a_scan(scene: Scene):
    effort = Effort()
    with effort.watched():
        query = sa.select(sa.func.count()).where(executions.c.updated_at > 0, executions.c.owner != "nobody")
        assert scene.database.read(lambda c: c.execute(query).scalar()) == 2 * CROWD
    [spent] = effort.spent
    assert spent.rows > CROWD
    assert spent.scanned == ("durable_execution",)


def methods(store: type) -> set[str]:
    return {name for name, one in inspect.getmembers(store, inspect.isfunction) if not name.startswith("_")}


def watch_methods(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    called: set[str] = set()
    for store in STORES:
        for name in methods(store):
            note = noting(called, f"{store.__name__}.{name}", getattr(store, name))
            static = isinstance(inspect.getattr_static(store, name), staticmethod)
            monkeypatch.setattr(store, name, staticmethod(note) if static else note)
    return called


def noting(called: set[str], name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def note(*args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return do(*args, **kwargs)

    return note


#: Modules outside the store that speak to the tables: the doctor's, which are called here as well; and what empties the
#: journal of a test database.
SPEAKERS = {"doctor/executions.py", "doctor/database.py", "runtime/django_testing.py"}


def test_nobody_else_speaks_to_the_tables():
    root = Path(celery_durable.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        text, name = file.read_text(), file.relative_to(root).as_posix()
        words = ("sa.select(", "sa.update(", "sa.delete(", "sa.insert(")
        if not name.startswith("store/") and any(word in text for word in words):
            found.add(name)
    assert found == SPEAKERS
