"""Transactional steps: rows and journal entry together, or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from celery_durable import (
    ConfigurationError,
    DurableContext,
    PayloadError,
    Retry,
    StepDescriptor,
    TransactionMisused,
    current_step,
    step,
    transactional,
)
from celery_durable.store.records import EffectCode, State
from tests.support.lab import Crash, Lab, Parked, everywhere

from .accounts import Account, Base, balances_in

pytestmark = everywhere


@pytest.fixture(autouse=True)
def tables(lab: Lab) -> None:
    Base.metadata.create_all(lab.runtime.database.engine)


def balances(lab: Lab) -> dict[int, int]:
    return balances_in(lab.runtime.database.engine)


def open_account(session: Session, number: int, balance: int = 0) -> int:
    session.add(Account(id=number, balance=balance))
    return number


def by_core(connection: Connection, number: int) -> str:
    connection.execute(sa.insert(Account).values(id=number, balance=1))
    return type(connection).__name__


# -- exactly once -----------------------------------------------------------------------------------------------


def test_rows_and_entry_commit_together(lab: Lab) -> None:
    def body(context: DurableContext) -> list[Any]:
        return [
            context.transaction(open_account, 1, balance=5),
            context.transaction("core", by_core, 2),
            context.step("plain", int, "3"),
        ]

    assert lab.run(body) == [1, "Connection", 3]
    assert balances(lab) == {1: 5, 2: 1}
    assert lab.entries() == ["0 RESULT open_account", "1 RESULT core", "2 RESULT plain"]
    assert [row.effect for row in lab.rows()][:2] == [EffectCode.TRANSACTIONAL] * 2
    assert lab.execution().steps == 3
    # Again: a replay.
    lab.sql(sa.text("UPDATE durable_execution SET state = 'pending', wake_at = NULL"))
    assert lab.run(body) == [1, "Connection", 3]
    assert balances(lab) == {1: 5, 2: 1}


@pytest.mark.parametrize("point", ["step.after_effect", "transaction.before_commit", "transaction.after_commit"])
def test_a_crash_leaves_both_or_neither(lab: Lab, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    reached: list[str] = []

    def body(context: DurableContext) -> Any:
        context.step("before", str, 1)
        return context.transaction(open_account, 1)

    def die(name: str, *_: str) -> None:
        reached.append(name)
        if name == point:
            raise Crash

    monkeypatch.setattr("celery_durable.steps.transactions.drive.reached", die)
    lab.crash(body)
    monkeypatch.undo()
    committed = point == "transaction.after_commit"
    assert balances(lab) == ({1: 0} if committed else {})
    assert ("1 RESULT open_account" in lab.entries()) == committed
    assert lab.run(body) == 1
    assert balances(lab) == {1: 0}


def test_an_owner_that_was_fenced_off_commits_no_rows(lab: Lab) -> None:
    def steal(session: Session) -> None:
        open_account(session, 1)
        session.flush()
        raise_epoch()

    def raise_epoch() -> None:
        with lab.runtime.database.engine.begin() as connection:
            connection.execute(sa.text("UPDATE durable_execution SET epoch = epoch + 1"))

    if lab.runtime.database.dialect == "sqlite":
        # One writer at a time: it has to happen before the operation begins.
        def body(context: DurableContext) -> None:
            context.step("flush", str)
            context._run.flush()
            raise_epoch()
            context.transaction("steal", open_account, 1)
    else:

        def body(context: DurableContext) -> None:
            context.transaction(steal)

    with pytest.raises(Parked):
        lab.run(body)
    assert balances(lab) == {}


# -- errors -----------------------------------------------------------------------------------------------------


def test_an_error_rolls_back_and_is_a_steps_error(lab: Lab) -> None:
    def fail(session: Session, number: int) -> None:
        open_account(session, number)
        session.flush()
        raise LookupError("no such customer")

    def body(context: DurableContext) -> str:
        try:
            context.transaction(fail, 1)
        except LookupError as error:
            context.transaction(open_account, 2)
            return str(error)
        return "?"

    assert lab.run(body) == "no such customer"
    assert balances(lab) == {2: 0}
    assert lab.entries() == ["0 ERROR fail", "1 RESULT open_account"]


def test_a_constraint_that_fails_at_the_flush_is_an_error_of_the_step(lab: Lab) -> None:
    def body(context: DurableContext) -> str:
        context.transaction(open_account, 1)
        try:
            context.transaction("again", open_account, 1)
        except IntegrityError as error:
            return type(error).__name__
        return "?"

    assert lab.run(body) == "IntegrityError"


def test_a_retry_policy_answers_errors_and_keeps_its_count(lab: Lab) -> None:
    left = [OSError("once"), OSError("twice")]
    attempts = []

    def flaky(session: Session) -> int:
        attempts.append(current_step().attempt)
        open_account(session, len(attempts))
        if left:
            raise left.pop(0)
        return 7

    retried = StepDescriptor.transactional("flaky", retry=Retry(max_attempts=3, backoff=0.0, on=(OSError,)))
    assert lab.run(lambda context: context.transaction(retried, flaky)) == 7
    assert attempts == [1, 2, 3]
    assert balances(lab) == {3: 0}
    assert lab.entries() == ["0 ATTEMPT flaky", "0 ATTEMPT flaky", "0 RESULT flaky"]


def test_a_result_that_cannot_be_stored_takes_its_rows_back(lab: Lab) -> None:
    def body(context: DurableContext) -> str:
        try:
            context.transaction("odd", lambda session: open_account(session, 1) and object())
        except PayloadError as error:
            return error.code
        return "?"

    assert lab.run(body) == "CD401"
    assert balances(lab) == {}


MISUSES: dict[str, Callable[[Any], Any]] = {
    "commits": lambda session: (open_account(session, 1), session.commit()),
    "rolls back": lambda session: (open_account(session, 1), session.rollback()),
    "closes": lambda session: (open_account(session, 1), session.close()),
    "rolls back and goes on": lambda session: (session.rollback(), open_account(session, 1), session.flush()),
    "commits in SQL": lambda session: (open_account(session, 1), session.flush(), session.execute(sa.text("COMMIT"))),
    "rolls back in SQL": lambda session: (
        session.execute(sa.text("/* not a savepoint */ rollback")),
        open_account(session, 1),
    ),
}


@pytest.mark.parametrize("how", MISUSES)
def test_an_operation_must_not_end_its_transaction(lab: Lab, how: str) -> None:
    def body(context: DurableContext) -> Any:
        with pytest.raises(TransactionMisused, match="must n"):
            context.transaction("misuse", MISUSES[how])
        return context.transaction(open_account, 2)

    assert lab.run(body) == 2
    assert balances(lab) == {2: 0}


@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
def test_nor_may_it_with_a_connection(lab: Lab, how: str) -> None:
    def misuse(connection: Connection) -> None:
        by_core(connection, 1)
        getattr(connection, how)()

    def hidden(connection: Connection) -> None:
        by_core(connection, 1)
        try:
            getattr(connection, how)()
        except TransactionMisused:
            pass

    def body(context: DurableContext) -> None:
        for op in (misuse, hidden):
            with pytest.raises(TransactionMisused):
                context.transaction(op)

    lab.run(body)
    assert balances(lab) == {}


def test_savepoints_are_the_operations_own(lab: Lab) -> None:
    def careful(session: Session) -> str:
        open_account(session, 1)
        session.flush()
        try:
            with session.begin_nested():
                session.add(Account(id=1, balance=9))
        except IntegrityError:
            return "known"
        return "?"

    assert lab.run(lambda context: context.transaction(careful)) == "known"
    assert balances(lab) == {1: 0}


def test_an_error_that_was_swallowed_is_told(lab: Lab) -> None:
    def careless(session: Session) -> str:
        open_account(session, 1)
        session.flush()
        try:
            session.add(Account(id=1, balance=9))
            session.flush()
        except IntegrityError:
            pass
        return "known"

    def body(context: DurableContext) -> None:
        with pytest.raises(TransactionMisused, match="savepoint"):
            context.transaction(careless)

    lab.run(body)
    assert balances(lab) == {}


@pytest.mark.databases("postgresql")
def test_an_error_that_was_swallowed_below_the_session_is_told(lab: Lab) -> None:
    def careless(connection: Connection) -> None:
        by_core(connection, 1)
        try:
            by_core(connection, 1)
        except IntegrityError:
            pass

    def body(context: DurableContext) -> None:
        with pytest.raises(TransactionMisused, match="savepoint"):
            context.transaction(careless)

    lab.run(body)
    assert balances(lab) == {}


# -- how it is said ---------------------------------------------------------------------------------------------


class OurSession(Session):
    pass


@step(effect=transactional())
def decorated(session: Session, number: int) -> str:
    open_account(session, number)
    return f"{type(session).__name__} {current_step().name}"


@step(effect=transactional(isolation="SERIALIZABLE"))
def open_account_as_step(session: Session, number: int) -> int:
    return open_account(session, number)


def test_who_gets_what(lab: Lab) -> None:
    maker = sessionmaker(class_=OurSession, binds={Account: sa.create_engine("sqlite://")})

    def ours(session: OurSession) -> str:
        return type(session).__name__

    def by_text(session: "Connection") -> str:  # noqa: UP037
        return type(session).__name__

    def body(context: DurableContext) -> list[str]:
        named = StepDescriptor.transactional("made", session=maker)
        return [
            decorated(1),
            context.transaction(decorated, 2),
            context.transaction("renamed", decorated, 3),
            context.transaction(ours),
            context.transaction(by_text),
            context.transaction("lambda", lambda session: type(session).__name__),
            context.transaction(named, lambda session: type(session).__name__ + str(open_account(session, 4))),
        ]

    assert lab.run(body) == [
        "Session decorated", "Session decorated", "Session renamed", "OurSession", "Connection", "Session",
        "OurSession4",
    ]  # fmt: skip
    assert balances(lab) == dict.fromkeys((1, 2, 3, 4), 0)


@pytest.mark.databases("sqlite")
def test_outside_a_body_it_is_the_plain_function(lab: Lab) -> None:
    with Session(lab.runtime.database.engine) as session:
        assert open_account_as_step.operation(session, 1) == 1
        session.rollback()
    assert balances(lab) == {}


def test_a_task_that_is_called_directly_has_its_transactions_all_the_same(lab: Lab) -> None:
    lab._body = lambda context: context.transaction(open_account, 1)
    assert lab.job() == 1
    lab._body = lambda context: context.transaction("fails", lambda session: open_account(session, 2) / 0)
    with pytest.raises(ZeroDivisionError):
        lab.job()
    assert balances(lab) == {1: 0}


def test_parallel_branches(lab: Lab) -> None:
    def body(context: DurableContext) -> list[int]:
        with context.parallel() as branches:
            found = [branches.submit(context.transaction, open_account, n) for n in range(5)]
        return [branch.result() for branch in found]

    assert lab.run(body) == [0, 1, 2, 3, 4]
    assert set(balances(lab)) == {0, 1, 2, 3, 4}


def test_an_async_body(lab: Lab) -> None:
    async def body(context: DurableContext) -> int:
        return context.transaction(open_account, 1)

    assert lab.run(body) == 1
    assert balances(lab) == {1: 0}


# -- divergence -------------------------------------------------------------------------------------------------


def test_committed_rows_survive_a_divergence(lab: Lab) -> None:
    def first(context: DurableContext) -> None:
        context.step("old", str, 1)
        context.transaction(open_account, 1)
        raise Crash

    def second(context: DurableContext) -> Any:
        context.step("new", str, 1)
        return context.transaction(open_account, 1)

    lab.crash(first)
    assert lab.run(second) == 1
    assert lab.execution().generation == 2
    assert balances(lab) == {1: 0}


def test_other_arguments_after_a_divergence_are_no_second_operation(lab: Lab) -> None:
    def first(context: DurableContext) -> None:
        context.step("old", str, 1)
        context.transaction(open_account, 1)
        raise Crash

    def second(context: DurableContext) -> Any:
        context.step("new", str, 1)
        return context.transaction(open_account, 2)

    lab.crash(first)
    assert "transactional step 'open_account' (position 1) of execution one ran already" in lab.parks(second)
    assert lab.state() is State.AMBIGUOUS
    assert balances(lab) == {1: 0}


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("say", "error"),
    [
        (lambda c: c.transaction("name"), "needs a function"),
        (lambda c: c.transaction(3), "takes a function"),
        (lambda c: c.transaction(lambda session: 1), "has no name"),
        (lambda c: c.transaction("name", lambda: 1), "takes no arguments"),
        (lambda c: c.transaction(StepDescriptor("plain"), open_account, 1), "is idempotent"),
    ],
)
def test_what_makes_no_sense_is_refused(lab: Lab, say: Callable[[Any], Any], error: str) -> None:
    def body(context: DurableContext) -> None:
        with pytest.raises(ConfigurationError, match=error):
            say(context)

    lab.run(body)


@pytest.mark.databases("sqlite")
def test_options_that_make_no_sense_are_refused(lab: Lab) -> None:
    for options in (
        {"session": 3},
        {"isolation": "chaos"},
        {"tries": 0},
        {"using": ""},
        {"using": "x", "session": Session},
    ):
        with pytest.raises(ConfigurationError, match="transactional"):
            transactional(**options)
