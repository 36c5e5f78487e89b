"""What has ended is pruned: what goes, what stays, for how long; and what a pruned execution still answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import DurableContext, JournalUnavailable, OnAmbiguous, WrongState
from celery_durable.common import faults
from celery_durable.retention.pruner import Pruner
from celery_durable.retention.rules import Rules
from celery_durable.retention.upkeep import Upkeep
from celery_durable.settings import load
from celery_durable.store import RetentionStore
from celery_durable.store.records import Opened, OpenRequest, Refusal, Refused, State, StoredPayload
from celery_durable.store.retention import RightLost
from celery_durable.store.tables import executions, upkeep
from tests.integration.charging import charging
from tests.support.databases import JournalDatabase
from tests.support.history import SECOND, History
from tests.support.lab import Lab, everywhere

DAY = 86_400 * SECOND
ORDER = charging(OnAmbiguous.FAIL, key=lambda order: f"order-{order}")


class Retention:
    """A lab with a past, and services that look after it."""

    def __init__(self, make_lab: Callable[..., Lab], **settings: Any) -> None:
        self.lab = make_lab(**{f"durable_{name}": value for name, value in settings.items()})
        runtime = self.lab.runtime
        self.rules = Rules.of(load(self.lab.app))
        self.store = RetentionStore(runtime.database, namespace=runtime.settings.namespace)
        self.history = History(runtime.database, runtime.settings.namespace)

    def service(self, owner: str = "one", **options: Any) -> Upkeep:
        return Upkeep(self.store, self.rules, owner, **{"rhythm": 10.0, **options})

    def keep_up(self, service: Upkeep | None = None, *, full: bool = False) -> None:
        """Let a service work until there is nothing left to do.

        :param full: the time of the full pass has come.
        """
        service = service or self.service()
        if full:
            self.store.take("one", 1)
            progress = '{"full": 0, "full_began": 1}'
            self.lab.sql(sa.update(upkeep).values(progress=progress, held_until=0))
        for _ in range(1000):
            if service.turn() == 10.0:
                return
        raise AssertionError("it has not come to an end")

    def restart(self) -> Upkeep:
        """The right of whoever had it has run out."""
        self.lab.sql(sa.update(upkeep).values(held_until=0))
        return self.service("another")


@pytest.fixture
def retention(make_lab: Callable[..., Lab]) -> Callable[..., Retention]:
    return lambda **settings: Retention(make_lab, **settings)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Arms a fault in this process."""

    def arm(text: str) -> None:
        monkeypatch.setenv(faults.FAULT_VARIABLE, text)
        faults.reload()

    yield arm
    monkeypatch.delenv(faults.FAULT_VARIABLE, raising=False)
    faults.reload()


# -- what goes, and what stays ------------------------------------------------------------------------------------


@everywhere
def test_what_ended_long_enough_ago_is_pruned_by_its_state(retention: Callable[..., Retention]) -> None:
    past = retention(retention={"completed": 7 * DAY / SECOND, "failed": 30 * DAY / SECOND})
    add = past.history.add
    add("completed", ended=8 * DAY)
    add("young", ended=6 * DAY)
    add("failed", state=State.FAILED, ended=31 * DAY)
    add("young-failure", state=State.FAILED, ended=29 * DAY)
    add("cancelled", state=State.CANCELLED, ended=1000 * DAY)  # nothing is said of this state
    # Celery has not been told yet; and what has not ended, or waits for an operator, stays for ever.
    add("untold", ended=1000 * DAY, wake_at=1)
    for state in (State.PENDING, State.RUNNING, State.SUSPENDED, State.AMBIGUOUS, State.QUARANTINED):
        add(f"is-{state}", state=state, ended=1000 * DAY)
    add("elsewhere", ended=1000 * DAY, namespace="another")
    past.keep_up()
    assert past.history.tombstones() == ["completed", "failed"]
    assert past.history.rows("completed") == past.history.rows("failed") == {}
    for name in past.history.whole():
        assert past.history.rows(name) == {"payload": 2, "journal": 2, "promise": 1}
    assert past.history.orphans() == 0


@everywhere
def test_what_ended_long_after_it_began_is_found_by_the_full_pass(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("long", began=100 * DAY, ended=DAY // 2)
    past.keep_up()
    past.lab.sql(sa.update(executions).values(updated_at=executions.c.updated_at - DAY))
    past.keep_up()
    assert past.history.whole() == ["long"], "the front comes by but once"
    past.keep_up(full=True)
    assert past.history.tombstones() == ["long"]


@everywhere
def test_the_full_pass_comes_by_itself(retention: Callable[..., Retention], monkeypatch: pytest.MonkeyPatch) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("long", began=100 * DAY, ended=DAY // 2)
    past.keep_up()
    monkeypatch.setattr(Rules, "pass_interval", 0)
    past.lab.sql(sa.update(executions).values(updated_at=executions.c.updated_at - DAY))
    past.service().turn()
    assert past.history.tombstones() == ["long"]


@everywhere
@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"retention_count": 2}, ["c3", "f3"]),
        ({"retention_count": {"completed": 1}}, ["c3", "f0", "f1", "f2", "f3"]),
        ({"retention_count": {"completed": 2, "failed": 0}}, ["c2", "c3"]),
        # An execution with a result of 100 000 bytes takes about that.
        ({"retention_bytes": 450_000}, ["c2", "c3", "f2", "f3"]),
        ({"retention_bytes": {"failed": 150_000}}, ["c0", "c1", "c2", "c3", "f3"]),
        ({"retention_count": 100, "retention_bytes": 10**9}, ["c0", "c1", "c2", "c3", "f0", "f1", "f2", "f3"]),
    ],
    ids=str,
)
def test_of_what_ended_the_latest_is_kept_up_to_a_number_or_a_size(
    retention: Callable[..., Retention], settings: dict[str, Any], left: list[str]
) -> None:
    past = retention(**settings)
    past.history.add("asleep", state=State.SUSPENDED, ended=DAY)
    for number in range(4):
        for letter, state in (("c", State.COMPLETED), ("f", State.FAILED)):
            name = f"{letter}{number}"
            past.history.add(name, state=state, ended=(10 - number) * DAY, steps=1, size=100_000)
    past.keep_up(past.service(chunk=3))
    assert past.history.whole() == ["asleep", *left]


@everywhere
@pytest.mark.parametrize(
    "settings",
    [{"retention_count": 3}, {"retention_bytes": 350_000}, {"retention_count": {"completed": 3, "failed": 0}}],
    ids=str,
)
def test_it_is_measured_again_and_again(retention: Callable[..., Retention], settings: dict[str, Any]) -> None:
    past = retention(**settings)
    if isinstance(settings.get("retention_count"), dict):
        # Of another state, and beyond its limit although it is the latest of all.
        past.history.add("failed", state=State.FAILED, ended=DAY)
    past.history.add(*(f"c{number}" for number in range(5)), ended=3 * DAY, steps=1, size=100_000)
    past.keep_up()
    assert past.history.whole() == ["c2", "c3", "c4"]
    past.history.add(*(f"c{number}" for number in range(5, 7)), ended=2 * DAY, steps=1, size=100_000)
    past.keep_up()
    assert len(past.history.whole()) == 5, "it is too early"
    service = past.service(measure_interval=0, chunk=2)
    for _ in range(100):
        service.turn()
        if past.history.whole() == ["c4", "c5", "c6"]:
            return
    raise AssertionError(past.history.whole())


@everywhere
def test_a_tombstone_goes_when_its_time_is_over(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND, tombstone_ttl=10 * DAY / SECOND)
    past.history.add("old", ended=20 * DAY, pruned_at=past.history.now - 9 * DAY, steps=0)
    past.history.add("older", ended=20 * DAY, pruned_at=past.history.now - 11 * DAY, steps=0)
    past.keep_up()
    assert past.history.tombstones() == ["old"]
    assert past.history.orphans() == 0


@everywhere
def test_tombstones_stay_for_ever_where_one_wants_that(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND, tombstone_ttl=None)
    past.history.add("older", ended=20 * DAY, pruned_at=1, steps=0)
    past.keep_up()
    assert past.history.tombstones() == ["older"]


# -- what a pruned execution still answers ------------------------------------------------------------------------


def message(id: str, owner: str = "late", **fields: Any) -> OpenRequest:  # noqa: A002
    return OpenRequest(id, **{"task": "old", "owner": owner, "retries": 0, **fields}, envelope=_envelope)


def _envelope() -> StoredPayload:
    return StoredPayload(1, b"{}")


@everywhere
@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED], ids=str)
def test_a_late_duplicate_of_a_pruned_execution_is_not_run(retention: Callable[..., Retention], state: State) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("one", state=state, ended=2 * DAY, replacements=1)
    past.keep_up()
    ownership, pk = past.lab.runtime.ownership, past.lab.execution("one").pk
    for late in (message("one", replacements=1), message("one", replacements=1, retries=3, pk=pk), message("one")):
        assert isinstance(ownership.open(late), Refused)
    assert past.history.tombstones() == ["one"]
    # When the tombstone is gone too, it is a new one.
    past.lab.sql(sa.update(executions).values(pruned_at=1))
    past.keep_up(full=True)
    assert isinstance(ownership.open(message("one")), Opened)


@everywhere
@pytest.mark.parametrize("other", [{"replacements": 1}, {"task": "another"}], ids=str)
def test_what_never_ran_under_its_id_runs(retention: Callable[..., Retention], other: dict[str, Any]) -> None:
    """``Task.replace`` may have sent its message through a chain that took its time; and ids may be given twice."""
    past = retention(retention=DAY / SECOND)
    past.history.add("one", ended=2 * DAY, key=b"k" * 32)
    past.keep_up()
    opened = past.lab.runtime.ownership.open(message("one", **other))
    assert isinstance(opened, Opened)
    assert (opened.generation, opened.base_generation) == (2, 2)
    assert past.history.tombstones() == []
    again = past.lab.runtime.ownership.open(message("one", owner="later", **other))
    assert isinstance(again, Refused)
    assert again.why is Refusal.LIVE


@everywhere
def test_who_calls_a_pruned_execution_eagerly_hears_that_its_result_is_gone(
    retention: Callable[..., Retention],
) -> None:
    past = retention(retention=0)
    lab = past.lab
    assert lab.run(lambda ctx: ctx.step("step", lambda: 7)) == 7
    past.keep_up(full=True)
    assert past.history.tombstones() == ["one"]
    with pytest.raises(WrongState, match=r"job\[one\] has ended \(completed\), and its result has been removed since"):
        lab.run(lambda ctx: ctx.step("step", lambda: 8))


@everywhere
def test_a_pruned_failure_cannot_be_resumed(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("one", state=State.FAILED, ended=2 * DAY)
    past.keep_up()
    with pytest.raises(
        WrongState, match=r"execution one is failed and was pruned \(durable_retention\): its journal is"
    ):
        past.lab.operations.resume("one")
    assert past.lab.state("one") is State.FAILED


@everywhere
def test_one_that_is_resumed_while_it_is_looked_at_is_left_alone(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("one", state=State.FAILED, ended=2 * DAY)
    rows = past.store.look(0, 1 << 62, 10)
    past.lab.operations.resume("one")
    assert past.store.prune(rows) == []
    past.lab.operations.fail("one", StoredPayload(1, b"{}"), "again")
    assert past.store.prune(rows) == []
    assert past.store.prune_slice(rows[0], 1)
    assert past.history.rows("one")["journal"] == 2


# -- keys ---------------------------------------------------------------------------------------------------------


def order(lab: Lab, execution: str, number: int = 7) -> Any:
    op = lab.operation("charge", {"receipt": number})

    def body(ctx: DurableContext) -> Any:
        ctx.step("before", lambda: 1)
        return ctx.step(ORDER, op, number)

    return lab.run(body, id=execution)


def age(lab: Lab, by: int) -> None:
    """Let time pass."""
    x = executions.c
    lab.sql(sa.update(executions).values(updated_at=x.updated_at - by, pruned_at=x.pruned_at - by))


@everywhere
def test_a_global_key_outlives_its_execution(retention: Callable[..., Retention]) -> None:
    past = retention(retention=0, tombstone_ttl=0)
    assert order(past.lab, "one") == {"receipt": 7}
    past.keep_up(full=True)
    age(past.lab, 1000 * DAY)
    past.keep_up(full=True)
    assert past.history.tombstones() == ["one"], "a tombstone that holds a key stays"
    assert past.lab.entries("one") == ["1 INTENT charge", "1 RESULT charge"]
    assert order(past.lab, "two") == {"receipt": 7}
    assert past.lab.ledger.count("charge") == 1


@everywhere
def test_a_key_is_forgotten_when_its_time_is_over(retention: Callable[..., Retention]) -> None:
    past = retention(retention=0, tombstone_ttl=0, key_retention=30 * DAY / SECOND)
    order(past.lab, "one")
    for days, left in ((29, ["one"]), (2, [])):
        past.keep_up(full=True)
        age(past.lab, days * DAY)
        past.keep_up(full=True)
        assert past.history.tombstones() == left
    assert past.history.orphans() == 0
    order(past.lab, "two")
    assert past.lab.ledger.count("charge") == 2


# -- little at a time ---------------------------------------------------------------------------------------------


@everywhere
def test_a_long_journal_is_removed_slice_by_slice(
    retention: Callable[..., Retention], fault: Callable[[str], None]
) -> None:
    """A crash in between leaves a tombstone that the next full pass empties."""
    past = retention(retention=DAY / SECOND)
    past.history.add("long", ended=2 * DAY, steps=25, key=b"k" * 32)
    [row] = past.store.look(0, 1 << 62, 10)
    assert not past.store.prune_slice(row, 10)
    assert past.history.tombstones() == ["long"]
    assert past.history.rows("long") == {"payload": 2, "journal": 15, "promise": 1, "guard": 1}
    with pytest.raises(WrongState):
        past.lab.operations.resume("long")
    fault("prune.before_slice=raise")
    with pytest.raises(RuntimeError):
        past.store.prune_slice(row, 10)
    assert past.history.rows("long")["journal"] == 15, "a slice is removed whole or not at all"
    past.keep_up()
    assert past.history.rows("long")["journal"] == 15
    past.keep_up(full=True)
    assert past.history.rows("long") == {"journal": 1, "guard": 1}


@everywhere
def test_a_service_removes_long_ones_in_slices_and_short_ones_together(
    retention: Callable[..., Retention], monkeypatch: pytest.MonkeyPatch
) -> None:
    past = retention(retention=DAY / SECOND)
    for number in range(3):
        past.history.add(*(f"short-{number}-{n}" for n in range(5)), ended=(10 - 2 * number) * DAY)
        past.history.add(f"long-{number}", ended=(9 - 2 * number) * DAY, steps=100)
    past.history.add("diverged", ended=2 * DAY, generation=2)
    service = past.service()
    service._pruner._load = 30
    # Whatever the database does, its transactions are neither quick nor slow: they stay as large as they are.
    monkeypatch.setattr("celery_durable.retention.pruner._QUICK", 0)
    monkeypatch.setattr("celery_durable.retention.pruner._SLOW", 3600)
    transactions: list[tuple[str, int]] = []
    for name in ("prune", "prune_slice"):
        real = getattr(past.store, name)

        def counted(what: Any, *args: Any, _real: Any = real, _name: str = name) -> Any:
            transactions.append((_name, len(what) if _name == "prune" else args[0]))
            return _real(what, *args)

        monkeypatch.setattr(past.store, name, counted)
    past.keep_up(service)
    assert past.history.whole() == []
    assert {sum(past.history.rows(name).values()) for name in past.history.tombstones()} == {0}
    assert transactions[0] == ("prune", 4), "of 7 rows each"
    assert transactions.count(("prune_slice", 30)) == 3 * 4 + 1


def test_transactions_that_take_too_long_become_smaller(
    retention: Callable[..., Retention], monkeypatch: pytest.MonkeyPatch
) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add(*(f"old-{n}" for n in range(40)), ended=2 * DAY)
    service = past.service()
    real, sizes = past.store.prune, []

    def slow(rows: Any, right: Any) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 4:
            raise JournalUnavailable("the database did not commit within 5 s")
        return real(rows, right)

    monkeypatch.setattr(past.store, "prune", slow)
    monkeypatch.setattr("celery_durable.retention.pruner._QUICK", 0)
    for _ in range(2):
        with pytest.raises(JournalUnavailable):
            service.turn()
    past.keep_up(service)
    assert past.history.whole() == []
    assert sizes == [40, 17, *[4] * 10]


@everywhere
def test_to_look_whether_there_is_anything_to_do_costs_next_to_nothing(retention: Callable[..., Retention]) -> None:
    past = retention(retention={"completed": DAY / SECOND}, retention_count=1000)
    past.history.add(*(f"young-{n}" for n in range(50)), ended=DAY // 2)
    first, second = past.service("first"), past.service("second")
    past.keep_up(first)
    statements: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "durable_" in statement:
            statements.append(statement)

    database = past.lab.runtime.database
    engines = {database.engine, *([database._autocommit] if database._autocommit is not None else ())}
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", count)
    assert second.turn() == 10.0
    assert len(statements) == 1
    statements.clear()
    assert first.turn() == 10.0
    # Who has the right, and that it is prolonged; one look for each age; and how far they are.
    assert len(statements) == 2 + len(past.rules.fronts()) + 1


@everywhere
def test_a_crash_before_the_commit_leaves_everything_and_after_it_nothing_to_do(
    retention: Callable[..., Retention], fault: Callable[[str], None]
) -> None:
    past = retention(retention=DAY / SECOND, tombstone_ttl=0)
    past.history.add("one", ended=2 * DAY)
    fault("prune.before_commit=raise,forget.before_commit=raise")
    with pytest.raises(RuntimeError):
        past.service().turn()
    assert past.history.rows("one") == {"payload": 2, "journal": 2, "promise": 1}
    assert past.history.whole() == ["one"]
    service = past.restart()
    fault("prune.after_commit=raise,forget.before_commit=raise")
    with pytest.raises(RuntimeError):
        service.turn()
    assert past.history.tombstones() == ["one"]
    assert past.history.rows("one") == {}
    past.lab.sql(sa.update(executions).values(pruned_at=1))
    with pytest.raises(RuntimeError):
        past.keep_up(full=True)
    assert past.history.tombstones() == ["one"]
    fault("")
    past.keep_up(full=True)
    assert past.history.tombstones() == []


# -- several services ---------------------------------------------------------------------------------------------


@everywhere
def test_one_service_at_a_time_and_another_goes_on_where_it_stopped(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("one", ended=2 * DAY)
    first, second = past.service("first"), past.service("second")
    past.keep_up(first)
    past.history.add("two", ended=2 * DAY)  # where the front has been already
    assert second.turn() == 10.0
    assert past.store.take("second", 1000) is None
    successor = past.restart()
    past.keep_up(successor)
    assert past.history.tombstones() == ["one"], "it does not begin at the beginning"
    past.history.add("three", ended=2 * DAY)
    rows = [row for row in past.store.look(0, 1 << 62, 10) if row.pruned is None]
    with pytest.raises(RightLost):
        past.store.prune(rows, first._right())
    with pytest.raises(RightLost):
        past.store.keep(first._right())
    assert past.history.whole() == ["three", "two"]


@everywhere
def test_progress_of_another_version_begins_anew(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND)
    past.keep_up()
    for unknown in ("", "[]", "17", '{"fronts": {"x": "y"}}', '{"over": {"sleeping": 3}}', '{"measure": {"a": 1}}'):
        past.lab.sql(sa.update(upkeep).values(progress=unknown))
        past.history.add(f"old {unknown}", ended=2 * DAY)
        past.keep_up()
        assert past.history.whole() == []


@pytest.mark.databases("postgresql", "mysql")
@everywhere
def test_an_execution_that_somebody_holds_is_left_for_another_time(
    retention: Callable[..., Retention], database: JournalDatabase
) -> None:
    past = retention(retention=DAY / SECOND)
    past.history.add("held", "free", ended=2 * DAY)
    with database.engine().begin() as connection:
        held = executions.c.pk == past.lab.execution("held").pk
        connection.execute(sa.select(executions).where(held).with_for_update())
        past.keep_up()
        assert past.history.whole() == ["held"]
    past.keep_up(full=True)
    assert past.history.whole() == []


# -- counting -----------------------------------------------------------------------------------------------------


@everywhere
def test_a_dry_walk_counts_and_changes_nothing(retention: Callable[..., Retention]) -> None:
    past = retention(retention=DAY / SECOND, tombstone_ttl=0)
    past.history.add("one", "two", ended=2 * DAY)
    past.history.add("long", ended=2 * DAY, steps=300, state=State.FAILED)
    past.history.add("elsewhere", ended=2 * DAY, namespace="another")
    past.history.add("untold", ended=2 * DAY, wake_at=1)
    past.history.add("old", ended=2 * DAY, pruned_at=1, steps=0)
    past.history.add("holder", ended=2 * DAY, pruned_at=1, steps=1, key=b"k" * 32)
    counts = []
    for dry in (True, False):
        pruner = Pruner(past.store, past.rules, dry=dry)
        arrived = [0]
        while pruner.walk(arrived[-1], 1 << 62, {}, arrived.append):
            pass
        counts.append((pruner.pruned, pruner.forgotten))
    assert counts[0] == counts[1] == ({State.COMPLETED: 2, State.FAILED: 1}, 1)
    assert past.history.tombstones() == ["holder", "long", "one", "two"]


def test_sqlite_finds_what_it_prunes_by_its_key(retention: Callable[..., Retention]) -> None:
    """By the namespace it would read all executions that there are, for each batch."""
    past = retention()
    past.history.add(*(f"old-{number}" for number in range(30)), ended=2 * DAY)
    engine = past.lab.runtime.database.engine
    said: list[tuple[str, Any]] = []
    sa.event.listen(engine, "before_cursor_execute", lambda c, cursor, text, values, *_: said.append((text, values)))
    assert len(past.store.prune(past.store.look(0, 1 << 62, 30))) == 30
    looks = [one for one in said if one[0].startswith(("SELECT", "UPDATE", "DELETE"))]
    with engine.connect() as connection:
        plans = [
            str(step.detail)
            for text, values in looks
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
        ]
    assert len(plans) >= 6
    assert [plan for plan in plans if "namespace" in plan or plan.startswith("SCAN")] == []
