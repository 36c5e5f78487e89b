"""Promises: what somebody outside brings, once, and what a body makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery import current_app

import celery_durable
from celery_durable import (
    ConfigurationError,
    DurableContext,
    PayloadError,
    PayloadTooLarge,
    Promise,
    PromiseRejected,
    PromiseSettled,
    PromiseTimeout,
    WrongToken,
)
from celery_durable.store.records import PromiseState, State
from celery_durable.store.tables import promises
from tests.integration.asking import DAY, Asking
from tests.integration.journal.test_cost import double
from tests.support.delivery import Delivery, Left
from tests.support.lab import Lab, everywhere


class Refused(Exception):
    """A reason with facts in it."""

    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text, limit)
        self.limit = limit


# -- kept -------------------------------------------------------------------------------------------------------


@everywhere
def test_a_body_waits_for_a_promise_and_gets_what_it_was_resolved_with(
    lab: Lab, deliver: Delivery, asking: Asking
) -> None:
    deliver.suspends(asking)
    assert lab.entries() == ["0 PROMISE approval", "1 RESULT ask", "2 WAIT approval"]
    row = lab.execution()
    assert (row.state, row.wake_at) == (State.SUSPENDED, None)
    assert deliver.due() == []
    value = {"by": "ann", "limit": (1, 2.5, b"x")}
    asking.resolve(value)
    assert deliver(asking) == value
    assert lab.entries() == ["0 PROMISE approval", "1 RESULT ask", "2 WAIT approval", "2 RESULT approval"]
    first, again = asking.made
    assert (first.id, first.token) == (again.id, again.token)
    assert lab.ledger.count("ask") == 1
    assert repr(first) == f"<promise 'approval' {first.id}>"


@everywhere
def test_it_can_be_resolved_before_it_is_waited_for(lab: Lab, deliver: Delivery) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("early")
        celery_durable.resolve(promise.id, promise.token, 5, app=lab.app)
        return ctx.wait(promise), ctx.wait(promise)

    assert deliver(body) == (5, 5)
    assert [e.split(" ", 1)[1] for e in lab.entries()] == ["PROMISE early", *["WAIT early", "RESULT early"] * 2]


def test_what_it_came_to_is_in_the_journal_and_needs_the_promise_no_more(
    lab: Lab, deliver: Delivery, asking: Asking
) -> None:
    def body(ctx: DurableContext) -> Any:
        value = asking(ctx)
        ctx.sleep(DAY)
        return value

    deliver.suspends(body)
    asking.resolve("yes")
    deliver.suspends(body)
    lab.sql(sa.delete(promises))
    deliver.elapse(DAY)
    assert deliver.resumes(body) == "yes"


@everywhere
def test_the_first_one_wins_and_may_say_it_again(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    asking.resolve([1, 2])
    asking.resolve([1, 2])
    for late in (lambda: asking.resolve([2]), lambda: asking.reject("no")):
        with pytest.raises(PromiseSettled, match="it has already been resolved, in another way") as caught:
            late()
        assert (caught.value.promise_id, caught.value.state) == (asking.row.id, "resolved")
    assert deliver(asking) == [1, 2]
    asking.resolve([1, 2])
    with pytest.raises(PromiseSettled):
        asking.resolve(3)


@everywhere
def test_of_many_who_resolve_at_once_one_wins(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    start = threading.Barrier(6)
    outcomes: list[Any] = []

    def race(number: int) -> None:
        start.wait()
        try:
            asking.resolve(number) if number % 2 else asking.reject(str(number))
        except PromiseSettled as error:
            outcomes.append(error.state)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [one for one in outcomes if isinstance(one, int)]
    assert {one for one in outcomes if one != winner} == {"resolved" if winner % 2 else "rejected"}
    if winner % 2:
        assert deliver(asking) == winner
    else:
        with pytest.raises(PromiseRejected, match=f"was rejected: {winner}"):
            deliver(asking)


@everywhere
def test_a_settlement_wakes_the_suspension_that_waits_for_it_and_no_other(
    lab: Lab, deliver: Delivery, asking: Asking
) -> None:
    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        asking.made.append(promise)
        ctx.sleep(DAY)
        return ctx.wait(promise)

    deliver.suspends(body)
    asking.resolve(5)
    # It sleeps: what it waits for later does not matter now.
    assert deliver.due() == []
    with pytest.raises(Left, match="suspended"):
        deliver(body)
    assert len(asking.made) == 1
    deliver.elapse(DAY)
    assert deliver.resumes(body) == 5


def test_what_was_settled_while_the_body_was_on_its_way_out_wakes_it_at_once(
    lab: Lab, deliver: Delivery, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and the commit of its suspension."""
    from celery_durable.execution import ending

    monkeypatch.setattr(
        ending, "reached", lambda point, *_: asking.resolve("just now") if point == "wait.before_suspend" else None
    )
    deliver.suspends(asking)
    monkeypatch.undo()
    assert deliver.resumes(asking) == "just now"


def test_the_resolver_sends_the_message_and_recovery_where_it_does_not(
    lab: Lab, deliver: Delivery, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(
        lab.app.amqp, "send_task_message", lambda producer, name, message, **_: sent.append(message.headers["id"])
    )
    deliver.suspends(asking)
    asking.resolve(1)
    assert sent == ["one"]
    # It is on its way; it comes up again only when nothing has come of it for a while.
    assert deliver.due() == []
    deliver.elapse(5)
    assert deliver.due() == ["one"]
    # Whoever asks again, because there was no answer, has it sent again too.
    asking.resolve(1)
    assert sent == ["one", "one"]
    assert deliver(asking) == 1
    asking.resolve(1)
    assert sent == ["one", "one"]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(lab.app.amqp, "send_task_message", refuse)
    other = Asking(lab)
    deliver.suspends(other, id="two")
    other.resolve(2)
    assert deliver.due() == ["two"]
    assert deliver(other, id="two") == 2


# -- not kept ---------------------------------------------------------------------------------------------------


@everywhere
def test_a_rejection_is_an_error_in_the_body(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    seen: list[PromiseRejected] = []

    def body(ctx: DurableContext) -> None:
        try:
            asking(ctx)
        except PromiseRejected as error:
            seen.append(error)
        ctx.sleep(DAY)

    deliver.suspends(body)
    asking.reject(Refused("too much", 500))
    deliver.suspends(body)
    deliver.elapse(DAY)
    deliver.resumes(body)
    for error in seen:
        assert str(error) == ("[CD601] promise 'approval' of execution one was rejected: Refused: ('too much', 500)")
        assert (error.promise, error.promise_id) == ("approval", asking.row.id)
        assert isinstance(error.error, Refused)
        assert (error.error.args, error.error.limit) == (("too much", 500), 500)
        assert isinstance(error.__cause__, Refused)
    assert len(seen) == 2


def test_a_reason_may_be_a_text(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    asking.reject("over the limit")
    with pytest.raises(PromiseRejected) as caught:
        deliver(asking)
    assert caught.value.message == "promise 'approval' of execution one was rejected: over the limit"
    assert (caught.value.reason, caught.value.error, caught.value.__cause__) == ("over the limit", None, None)
    assert lab.state() is State.FAILED


@everywhere
def test_a_promise_that_is_not_kept_in_time_expires(lab: Lab, deliver: Delivery) -> None:
    asking = Asking(lab, timeout=DAY)
    deliver.suspends(asking)
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert DAY - 60 < claims.next_ms / 1000 <= DAY
    deliver.elapse(DAY)
    with pytest.raises(PromiseTimeout) as caught:
        deliver.resumes(asking)
    assert caught.value.message == "promise 'approval' of execution one was not resolved in time."
    assert (caught.value.promise, caught.value.promise_id) == ("approval", asking.row.id)
    assert asking.row.state is PromiseState.EXPIRED
    with pytest.raises(PromiseSettled, match=r"cannot be settled now: it had expired\."):
        asking.resolve(1)


@everywhere
def test_time_decides_between_a_timeout_and_a_resolution_whoever_comes_first(lab: Lab, deliver: Delivery) -> None:
    late = Asking(lab, timeout=DAY)
    deliver.suspends(late)
    deliver.elapse(DAY + 1)
    # Nobody has noticed the timeout yet.
    with pytest.raises(PromiseSettled) as caught:
        late.resolve(1)
    assert caught.value.state == "expired"
    with pytest.raises(PromiseTimeout):
        deliver.resumes(late)

    early = Asking(lab, timeout=DAY)
    deliver.suspends(early, id="two")
    early.resolve("in time")
    deliver.elapse(2 * DAY)
    assert deliver(early, id="two") == "in time"


@everywhere
def test_a_timeout_and_a_resolution_at_the_same_moment_agree(lab: Lab, deliver: Delivery) -> None:
    """The body and the resolver see the same one, whichever it is."""
    for number in range(5):
        asking = Asking(lab, timeout=0.2)
        name = f"race-{number}"
        deliver.suspends(asking, id=name)
        [row] = lab.runtime.promises.of([lab.execution(name).pk])
        outcomes: dict[str, Any] = {}
        start = threading.Barrier(2)

        def resolve(asking: Asking = asking, outcomes: dict[str, Any] = outcomes, start: Any = start) -> None:
            start.wait()
            try:
                asking.resolve("kept")
            except PromiseSettled as error:
                outcomes["resolver"] = error.state
            else:
                outcomes["resolver"] = "resolved"

        def wait(
            asking: Asking = asking, outcomes: dict[str, Any] = outcomes, start: Any = start, one: str = name
        ) -> None:
            start.wait()
            try:
                outcomes["body"] = deliver(asking, id=one)
            except PromiseTimeout:
                outcomes["body"] = "expired"

        lab.wake()
        assert deliver.due() == [name]
        assert row.deadline is not None
        while (left := row.deadline - lab.runtime.promises.look(()).now) > 3:
            threading.Event().wait(left / 2000)
        threads = [threading.Thread(target=resolve), threading.Thread(target=wait)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes in ({"resolver": "resolved", "body": "kept"}, {"resolver": "expired", "body": "expired"})


@pytest.mark.parametrize("how", ["reject", "expire"])
def test_a_retry_cannot_cure_a_promise_that_was_not_kept(lab: Lab, deliver: Delivery, how: str) -> None:
    asking = Asking(lab, timeout=DAY)

    def body(self: Any) -> None:
        asking(self.durable)

    task = lab.task("retried", body, autoretry_for=(Exception,), max_retries=5)
    lab.job = task
    deliver.suspends(lambda ctx: None)
    if how == "reject":
        asking.reject("no")
    else:
        deliver.elapse(DAY)
        assert deliver.due() == ["one"]
    with pytest.raises((PromiseRejected, PromiseTimeout)):
        deliver(lambda ctx: None)
    assert (lab.state(), lab.execution().retries) == (State.FAILED, 0)


# -- signs of life ----------------------------------------------------------------------------------------------


@everywhere
def test_signs_of_life_put_the_expiry_off_and_no_further_than_the_timeout(lab: Lab, deliver: Delivery) -> None:
    asking = Asking(lab, heartbeat=60, timeout=200)
    deliver.suspends(asking)
    for _ in range(3):
        deliver.elapse(50)
        asking.beat()
        # The execution is not woken for nothing.
        assert deliver.due() == []
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 0 < claims.next_ms <= 50_000
    deliver.elapse(50)
    with pytest.raises(PromiseTimeout):
        deliver.resumes(asking)
    with pytest.raises(PromiseSettled, match="it had expired"):
        asking.beat()


def test_a_promise_without_a_sign_of_life_expires(lab: Lab, deliver: Delivery) -> None:
    asking = Asking(lab, heartbeat=60)
    deliver.suspends(asking)
    deliver.elapse(61)
    with pytest.raises(PromiseSettled) as caught:
        asking.beat()
    assert caught.value.state == "expired"
    with pytest.raises(PromiseTimeout):
        deliver.resumes(asking)


def test_a_sign_of_life_puts_off_no_timer_and_no_other_promise(lab: Lab, deliver: Delivery) -> None:
    asking = Asking(lab)

    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("job", heartbeat=60)
        asking.made.append(promise)
        return ctx.select(job=promise, other=ctx.promise("other", timeout=300), late=ctx.timer(90))

    deliver.suspends(body)
    deliver.elapse(50)
    asking.beat()
    claims = deliver.claim()
    assert claims.next_ms is not None
    assert 0 < claims.next_ms <= 40_000
    deliver.elapse(40)
    assert deliver.resumes(body) == ("late", None)


def test_a_promise_that_expects_no_signs_of_life_says_so(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    with pytest.raises(ConfigurationError, match=r"make it with promise\('approval', heartbeat=\.\.\.\)"):
        asking.beat()


# -- tokens -----------------------------------------------------------------------------------------------------


@everywhere
def test_a_wrong_token_says_no_more_than_a_wrong_id(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    known, token = asking.key
    calls: list[Callable[[str, str], None]] = [
        lambda i, t: celery_durable.resolve(i, t, 1, app=lab.app),
        lambda i, t: celery_durable.reject(i, t, "no", app=lab.app),
        lambda i, t: celery_durable.heartbeat(i, t, app=lab.app),
    ]
    texts = set()
    wrong: list[tuple[Any, Any]] = [
        *((known, bad) for bad in ("", token[:-1], token + "x", "x" * 43, "\ud800", None, 5)),
        *((bad, token) for bad in ("", "0" * 32, known + "0", "a\0b", "ä", None, "' OR 1=1 --")),
    ]
    for call in calls:
        for one in wrong:
            with pytest.raises(WrongToken) as caught:
                call(*one)
            texts.add(str(caught.value))
    assert texts == {
        "[CD604] there is no promise with this id and token. Pass both as the body's Promise gives them: .id and .token"
    }
    assert asking.row.pending


@pytest.mark.parametrize("secret", [None, "a secret of the application"])
def test_a_token_is_the_same_on_every_replay_and_the_database_holds_its_hash(make_lab: Any, secret: str | None) -> None:
    lab = make_lab(durable_secret=secret)
    deliver, asking = Delivery(lab), Asking(lab)
    deliver.suspends(asking)
    lab.wake()
    assert deliver.due() == ["one"]
    deliver.suspends(asking)
    first, again = asking.made
    assert first.token == again.token
    assert len(first.token) == 43
    stored = b"".join(row.payload or b"" for row in lab.rows() if row.name == "approval")
    assert (first.token.encode() in stored) == (secret is None)
    hashes = lab.runtime.database.read(lambda c: c.execute(sa.select(promises.c.token_hash)).scalars().all())
    assert [len(one) for one in hashes] == [32]


def test_two_promises_have_two_tokens(make_lab: Any) -> None:
    lab = make_lab(durable_secret="a secret of the application")
    made: list[Promise] = []

    def body(ctx: DurableContext) -> None:
        made.extend([ctx.promise("a"), ctx.promise("a"), ctx.promise("b")])
        with ctx.parallel() as branches:
            for _ in range(2):
                branches.submit(lambda: made.append(ctx.promise("a")))

    lab.run(body)
    lab.run(body, id="two")
    assert len({p.id for p in made}) == len({p.token for p in made}) == 10


def test_a_secret_can_be_changed_while_promises_are_open(make_lab: Any, database: Any) -> None:
    old, new = "the old secret, long", "the new secret, long"
    lab = make_lab(durable_secret=old)
    asking = Asking(lab)
    Delivery(lab).suspends(asking)
    token = asking.made[0].token

    lab = make_lab(durable_secret=[new, old])
    asking.lab = lab
    lab.wake()
    deliver = Delivery(lab)
    assert deliver.due() == ["one"]
    deliver.suspends(asking)
    assert asking.made[1].token == token

    lab = make_lab(durable_secret=new)
    asking.lab = lab
    lab.wake()
    deliver = Delivery(lab)
    assert deliver.due() == ["one"]
    with pytest.raises(ConfigurationError, match=r"a secret that is not in durable_secret any more\. Add the old one"):
        deliver(asking)
    # Whoever has it can use it all the same.
    celery_durable.resolve(asking.made[0].id, token, 1, app=lab.app)


test_a_secret_can_be_changed_while_promises_are_open = pytest.mark.databases("sqlite")(
    test_a_secret_can_be_changed_while_promises_are_open
)


@everywhere
@pytest.mark.parametrize("secret", [None, "a secret of the application"])
def test_a_promise_that_was_given_away_outlives_a_divergence(make_lab: Any, secret: str | None) -> None:
    lab = make_lab(durable_secret=secret)
    deliver, asking = Delivery(lab), Asking(lab)
    deliver.suspends(asking)
    lab.wake()
    assert deliver.due() == ["one"]

    def changed(ctx: DurableContext) -> Any:
        ctx.step("new", double, 1)
        return asking(ctx)

    deliver.suspends(changed)
    assert lab.execution().generation == 2
    first, again = asking.made
    assert (first.id, first.token) == (again.id, again.token)
    celery_durable.resolve(first.id, first.token, "for both", app=lab.app)
    assert deliver(changed) == "for both"


# -- values -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_stored_is_refused_where_it_is_given(make_lab: Any) -> None:
    lab = make_lab(durable_max_payload_bytes=1000)
    deliver, asking = Delivery(lab), Asking(lab)
    deliver.suspends(asking)
    with pytest.raises(PayloadTooLarge, match=f"the value of promise {asking.key[0]}"):
        asking.resolve("x" * 1001)
    with pytest.raises(PayloadError, match=f"the value of promise {asking.key[0]}"):
        asking.resolve(object())
    with pytest.raises(ConfigurationError, match=r"reject\(\) takes a text or an exception, not 5\."):
        asking.reject(5)  # type: ignore[arg-type]
    asking.resolve("x" * 900)
    assert deliver(asking) == "x" * 900


def test_the_current_app_is_meant_where_none_is_given(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    deliver.suspends(asking)
    before = current_app._get_current_object()
    lab.app.set_current()
    try:
        celery_durable.resolve(*asking.key, 7)
    finally:
        before.set_current()
    assert deliver(asking) == 7


def test_a_promise_whose_row_is_gone_is_made_again(lab: Lab, deliver: Delivery, asking: Asking) -> None:
    """As in a journal that was copied."""

    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval", timeout=DAY)
        asking.made.append(promise)
        ctx.sleep(DAY)
        return ctx.wait(promise)

    deliver.suspends(body)
    lab.sql(sa.delete(promises))
    deliver.elapse(DAY)
    assert deliver.due() == ["one"]
    deliver.suspends(body)
    asking.resolve("found")
    assert deliver(body) == "found"


@everywhere
def test_a_rerun_keeps_the_verdicts_and_the_promises_that_were_given_away(
    lab: Lab, deliver: Delivery, asking: Asking
) -> None:
    other: list[Promise] = []

    def body(ctx: DurableContext) -> Any:
        value = asking(ctx)
        other.append(ctx.promise("other"))
        ctx.sleep(DAY)
        ctx.step("cut", len, "")
        return value, ctx.wait(other[-1])

    deliver.suspends(body)
    asking.resolve("yes")
    deliver.suspends(body)
    deliver.elapse(DAY)
    celery_durable.resolve(other[0].id, other[0].token, 1, app=lab.app)
    assert deliver.resumes(body) == ("yes", 1)
    again = celery_durable.get("one", app=lab.app).rerun(from_step="cut").id
    # Whoever was given the promise knows of no other, and has kept it.
    assert deliver(body, id=again) == ("yes", 1)
    assert lab.ledger.count("ask") == 1
    assert other[-1].id == other[0].id
