"""What becomes of promises in a rerun: those that were made before the step where it begins are shared."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery.exceptions import Ignore

import celery_durable
from celery_durable import (
    DurableContext,
    Promise,
    PromiseRejected,
    PromiseSettled,
    PromiseTimeout,
    State,
    UnknownStep,
    WrongToken,
)
from celery_durable.client import rerun as reruns
from celery_durable.store import RetentionStore
from celery_durable.store.tables import executions, new_pk, promises
from tests.support.commands import run as run_command
from tests.support.databases import JournalDatabase
from tests.support.delivery import Delivery, hand_over
from tests.support.lab import Lab, everywhere

DAY = 86_400


class Approval:
    """A body that gives a promise away, does something, and waits for it."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        self.lab = lab
        self.options = options
        self.made: list[Promise] = []
        self.changed = False

    def __call__(self, ctx: DurableContext) -> Any:
        promise = ctx.promise("approval", **self.options)
        self.made.append(promise)
        ctx.step("mail", self.lab.operation("mail"), promise.id, promise.token)
        if self.changed:
            ctx.step("new", self.lab.operation("new"))
        ctx.step("cut", self.lab.operation("cut"))
        return ctx.wait(promise)

    @property
    def key(self) -> tuple[str, str]:
        """What stands in the mail."""
        return self.made[0].id, self.made[0].token

    def resolve(self, value: Any = "yes") -> None:
        celery_durable.resolve(*self.key, value, app=self.lab.app)


@pytest.fixture(params=[None, "a secret of the tests"], ids=["kept token", "derived token"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(**({} if request.param is None else {"durable_secret": request.param}))


@pytest.fixture
def deliver(lab: Lab) -> Delivery:
    return Delivery(lab)


def begin(lab: Lab, body: Any, *, cancel: bool = True) -> None:
    """An execution that has sent its mail, and waits no more."""
    Delivery(lab).suspends(body)
    if cancel:
        celery_durable.get("one", lab.app).cancel()


def rerun(lab: Lab, durable_id: str, *, of: str = "one", from_step: int | str = "cut") -> None:
    celery_durable.get(of, lab.app).rerun(from_step, durable_id=durable_id)


def prune(lab: Lab, *ids: str) -> None:
    """What retention does to executions that have ended."""
    store = RetentionStore(lab.runtime.database, namespace=lab.runtime.settings.namespace)
    pks = [lab.execution(one).pk for one in ids]
    lab.sql(sa.update(executions).where(executions.c.pk.in_(pks)).values(wake_at=None))
    rows = [row for row in store.look(0, new_pk(), 100) if row.pk in pks]
    assert sorted(store.prune(rows)) == sorted(pks)


# -- where it begins ----------------------------------------------------------------------------------------------


def test_a_promise_and_its_wait_have_one_name_and_are_told_apart_by_their_positions(
    lab: Lab, deliver: Delivery
) -> None:
    body = Approval(lab)
    begin(lab, body)
    with pytest.raises(UnknownStep) as told:
        rerun(lab, "two", from_step="approval")
    assert told.value.message == (
        "2 places are named 'approval': say which by its position. The steps of execution one:\n"
        "  0  approval (promise)\n"
        "  3  approval (wait)"
    )
    for position, shares in ((0, False), (3, True)):
        new = f"from {position}"
        rerun(lab, new, from_step=position)
        deliver.suspends(body, id=new)
        assert ((body.made[-1].id, body.made[-1].token) == body.key) is shares


# -- who hears of it ----------------------------------------------------------------------------------------------


@everywhere
def test_a_promise_that_was_given_away_wakes_the_rerun_at_once(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    assert (body.made[-1].id, body.made[-1].token) == body.key
    # Until then it costs a row.
    assert lab.execution("two").wake_at is None
    deliver.elapse(30 * DAY)
    assert deliver.due() == []
    body.resolve()
    assert lab.execution("two").wake_at is not None
    deliver.elapse(10)
    assert deliver.resumes(body, id="two") == "yes"
    assert [lab.ledger.count(name) for name in ("mail", "cut")] == [1, 2]
    assert lab.state() is State.CANCELLED


@everywhere
def test_all_who_wait_for_it_get_it(lab: Lab, deliver: Delivery) -> None:
    """The old one, which was parked and goes on, its reruns, and a rerun of a rerun."""
    body = Approval(lab)
    begin(lab, body)
    lab.sql(sa.update(executions).values(state=State.QUARANTINED.value))
    for number in ("two", "three"):
        rerun(lab, number)
        deliver.suspends(body, id=number)
    celery_durable.get("two", lab.app).cancel()
    rerun(lab, "four", of="two")
    deliver.suspends(body, id="four")
    celery_durable.get("one", lab.app).resume()
    deliver.suspends(body, id="one")
    body.resolve({"by": "ann"})
    deliver.elapse(10)
    assert deliver.due() == ["four", "one", "three"]
    assert [deliver(body, id=one) for one in ("four", "one", "three")] == [{"by": "ann"}] * 3
    with pytest.raises(PromiseSettled, match="already been resolved, in another way"):
        body.resolve("no")
    body.resolve({"by": "ann"})


def test_the_resolver_sends_the_messages_of_all(lab: Lab, deliver: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    body = Approval(lab)
    begin(lab, body)
    for number in ("two", "three"):
        rerun(lab, number)
        deliver.suspends(body, id=number)
    sent: list[str] = []
    monkeypatch.setattr("celery_durable.client.promises.wake", lambda app, waking: sent.append(waking.id))
    body.resolve()
    assert sent == ["two", "three"]


@everywhere
def test_a_rejection_reaches_the_rerun_too(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    celery_durable.reject(*body.key, "too dear", app=lab.app)
    with pytest.raises(PromiseRejected, match="of execution two was rejected: too dear") as caught:
        deliver(body, id="two")
    assert caught.value.promise_id == body.key[0]


@everywhere
@pytest.mark.parametrize("waited", [True, False], ids=["it has seen it", "it has not"])
def test_what_was_kept_before_the_rerun_is_kept_in_it(lab: Lab, deliver: Delivery, waited: bool) -> None:
    body = Approval(lab)
    begin(lab, body, cancel=False)
    body.resolve(7)
    if waited:
        assert deliver(body) == 7
    else:
        celery_durable.get("one", lab.app).cancel()
    rerun(lab, "two")
    assert deliver(body, id="two") == 7


@everywhere
def test_a_verdict_outlives_what_was_pruned(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body, cancel=False)
    body.resolve("settled")
    celery_durable.get("one", lab.app).cancel()
    rerun(lab, "two")
    prune(lab, "one")
    assert deliver(body, id="two") == "settled"


@everywhere
def test_the_link_outlives_what_was_pruned(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    prune(lab, "one")
    with pytest.raises(WrongToken):
        celery_durable.resolve(body.key[0], "x" * 43, "yes", app=lab.app)
    body.resolve()
    assert deliver(body, id="two") == "yes"
    prune(lab, "two")
    with pytest.raises(WrongToken):
        body.resolve()


@everywhere
def test_the_link_outlives_a_divergence_of_the_rerun(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    body.changed = True
    lab.wake()
    deliver.due()
    deliver.suspends(body, id="two")
    assert lab.execution("two").generation == 2
    assert (body.made[-1].id, body.made[-1].token) == body.key
    body.resolve()
    assert deliver(body, id="two") == "yes"


@everywhere
def test_what_is_promised_after_the_cut_is_new(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two", from_step=0)
    deliver.suspends(body, id="two")
    assert body.made[-1].id != body.key[0]
    assert body.made[-1].token != body.key[1]
    with pytest.raises(PromiseSettled, match="was cancelled"):
        body.resolve()
    assert deliver.due() == []


@everywhere
def test_promises_of_branches_are_shared(lab: Lab, deliver: Delivery) -> None:
    made: dict[str, Promise] = {}

    def ask(ctx: DurableContext, name: str) -> None:
        made.setdefault(name, ctx.promise("approval"))
        assert ctx.promise("approval").id != made[name].id

    def body(ctx: DurableContext) -> Any:
        with ctx.parallel() as branches:
            for name in ("left", "right"):
                branches.submit(ask, ctx, name)
        ctx.step("cut", lab.operation("cut"))
        return [ctx.wait(made["left"]), ctx.wait(made["right"])]

    begin(lab, body)
    given = dict(made)
    made.clear()
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    assert {name: one.id for name, one in made.items()} == {name: one.id for name, one in given.items()}
    for name in ("right", "left"):
        celery_durable.resolve(given[name].id, given[name].token, name, app=lab.app)
    assert deliver(body, id="two") == ["left", "right"]


# -- time ---------------------------------------------------------------------------------------------------------


@everywhere
def test_its_time_runs_since_it_was_made(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab, timeout=3 * DAY)
    begin(lab, body)
    deliver.elapse(2 * DAY)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    assert deliver.due() == []
    deliver.elapse(DAY)
    assert deliver.due() == ["two"]
    with pytest.raises(PromiseTimeout, match="of execution two was not resolved in time"):
        deliver(body, id="two")
    with pytest.raises(PromiseSettled, match="it had expired"):
        body.resolve()


@everywhere
def test_one_whose_time_has_run_out_cannot_be_kept_for_a_rerun(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab, timeout=DAY)
    begin(lab, body)
    deliver.elapse(2 * DAY)
    rerun(lab, "two")
    with pytest.raises(PromiseSettled, match="it had expired"):
        body.resolve()
    with pytest.raises(PromiseTimeout):
        deliver(body, id="two")


@everywhere
def test_signs_of_life_are_heard_by_all(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab, heartbeat=60, timeout=DAY)
    begin(lab, body)
    for number in ("two", "three"):
        rerun(lab, number)
        deliver.suspends(body, id=number)
    for _ in range(3):
        deliver.elapse(50)
        celery_durable.heartbeat(*body.key, app=lab.app)
        assert deliver.due() == []
    deliver.elapse(61)
    assert deliver.due() == ["three", "two"]
    for number in ("two", "three"):
        with pytest.raises(PromiseTimeout):
            deliver(body, id=number)


# -- at the same time ---------------------------------------------------------------------------------------------


@everywhere
def test_who_resolves_while_the_rerun_is_recorded_is_heard(
    lab: Lab, deliver: Delivery, database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise is copied, and is kept before the copy is committed."""
    body = Approval(lab)
    begin(lab, body)
    told: list[BaseException | None] = []

    def resolve() -> None:
        try:
            body.resolve()
            told.append(None)
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=resolve)

    def at(point: str, *_: str) -> None:
        if point == "rerun.before_commit":
            thread.start()
            thread.join(0.3)

    monkeypatch.setattr(reruns, "reached", at)
    rerun(lab, "two")
    thread.join(30)
    assert told == [None]
    assert deliver(body, id="two") == "yes"


@everywhere
def test_of_two_who_settle_it_one_wins_for_all(lab: Lab, deliver: Delivery, database: JournalDatabase) -> None:
    body = Approval(lab)
    begin(lab, body)
    numbers = [f"n{number}" for number in range(4)]
    for number in numbers:
        rerun(lab, number)
        deliver.suspends(body, id=number)
    lost: list[Exception] = []

    def resolve(value: int) -> None:
        try:
            body.resolve(value)
        except PromiseSettled as error:
            lost.append(error)

    threads = [threading.Thread(target=resolve, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(lost) == 3
    assert len({deliver(body, id=number) for number in numbers}) == 1


# -- what people see ----------------------------------------------------------------------------------------------


@everywhere
def test_the_command_line_knows_it_by_the_id_that_was_given_away(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    deliver.suspends(body, id="two")
    known = body.key[0]
    [line] = run_command(lab.app, "promise", "list", "two", "--json").out.splitlines()
    assert (json.loads(line)["id"], json.loads(line)["awaited"]) == (known, True)
    shown = json.loads(run_command(lab.app, "show", "two", "--json").out)
    assert [one["id"] for one in shown["waits_for"]["promises"]] == [known]
    assert known in run_command(lab.app, "show", "two").out
    prune(lab, "one")
    run_command(lab.app, "promise", "resolve", known, "--force", "--value", "5", "--note", "by phone")
    assert deliver(body, id="two") == 5
    assert [(one["decision"], one["note"], one["promise"]) for one in lab.audits("two")] == [
        ("resolved", "by phone", known)
    ]


def test_it_is_known_by_no_other_id(lab: Lab, deliver: Delivery) -> None:
    body = Approval(lab)
    begin(lab, body)
    rerun(lab, "two")
    ids = lab.runtime.database.read(lambda c: c.execute(sa.select(promises.c.id)).scalars().all())
    assert len(ids) == 2
    [inner] = [one for one in ids if one != body.key[0]]
    with pytest.raises(WrongToken):
        celery_durable.resolve(inner, body.key[1], app=lab.app)


def test_an_async_body_wakes_by_it_too(lab: Lab, deliver: Delivery) -> None:
    made: list[Promise] = []

    async def body(self: Any) -> Any:
        ctx = self.durable
        made.append(ctx.promise("approval"))
        ctx.step("cut", lab.operation("cut"))
        return await ctx.wait(made[-1])

    task = lab.task("async_job", body)
    with pytest.raises(Ignore):
        hand_over(task, "one")
    celery_durable.get("one", lab.app).cancel()
    rerun(lab, "two")
    with pytest.raises(Ignore):
        hand_over(task, "two")
    assert lab.execution("two").wake_at is None
    celery_durable.resolve(made[0].id, made[0].token, "yes", app=lab.app)
    assert hand_over(task, "two") == "yes"
