"""A new execution that begins where an old one's journal is cut."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, chord, group

import celery_durable
from celery_durable import (
    ConfigurationError,
    DurableContext,
    DurableIdConflict,
    ExecutionHandle,
    OnAmbiguous,
    State,
    StepDescriptor,
    UnknownStep,
    WrongState,
    current_step,
)
from celery_durable.common import faults
from celery_durable.common.faults import FAULT_VARIABLE
from celery_durable.messaging import envelope as envelopes
from celery_durable.store import operations as store
from celery_durable.store.records import PayloadKind
from celery_durable.store.tables import executions
from tests.integration.charging import Timeout, charging
from tests.support.delivery import Delivery
from tests.support.lab import Crash, Lab, everywhere

CHARGE = charging(OnAmbiguous.RERUN)
SHIP = StepDescriptor.guarded("ship", CHARGE.guard.intent, on_ambiguous=OnAmbiguous.FAIL)  # type: ignore[union-attr]


class Works(Lab):
    """Calls that are published, and run by the test in the place of a worker."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.queue = f"rerun-{secrets.token_hex(6)}"
        usual = {"result_backend": "cache+memory://", "task_default_queue": self.queue}
        super().__init__(*args, **{**usual, **settings})

    def call(self, body: Callable[..., Any], *args: Any, id: str = "one", **options: Any) -> ExecutionHandle:  # noqa: A002
        """An execution that has come as far as its body lets it."""
        self.job.apply_async(args, durable_id=id, **options)
        try:
            self.run(body, *args, id=id)
        except (Exception, Crash):
            pass
        return celery_durable.get(id, self.app)

    def take(self) -> dict[str, Any]:
        """The next message."""
        with self.app.connection_for_read() as connection:
            message: dict[str, Any] = connection.default_channel._get(self.queue)
            return message

    def fires(self, name: str, value: Any = None) -> Callable[..., Any]:
        """An operation that notes its idempotency key."""

        def operate(*args: Any) -> Any:
            self.ledger.fire(name, execution=current_step().execution_id, key=current_step().idempotency_key.hex())
            return value

        return operate

    def order(self, ctx: DurableContext) -> Any:
        """Four steps, two of them guarded."""
        found = ctx.step("load", self.fires("load", {"total": 5}))
        receipt = ctx.step(CHARGE, self.fires("charge", "r1"), found["total"])
        parcel = ctx.step(SHIP, self.fires("ship", "p1"), receipt)
        ctx.step("mail", self.fires("mail"), parcel)
        return [receipt, parcel]

    def counts(self) -> dict[str, int]:
        return {name: self.ledger.count(name) for name in ("load", "charge", "ship", "mail")}

    def envelope(self, id: str) -> dict[str, Any]:  # noqa: A002
        stored = self.operations.payload(self.execution(id).pk, PayloadKind.ENVELOPE)
        assert stored is not None
        return envelopes.unpack(stored, self.runtime.envelope_codec)


@pytest.fixture
def works(make_lab: Callable[..., Any]) -> Works:
    made: Works = make_lab(Works)
    return made


# -- what is shared, and what is new ------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("step", ["ship", 2, "2"])
def test_what_lies_before_the_step_is_not_done_again(works: Works, step: int | str) -> None:
    first = works.call(works.order)
    again = first.rerun(step)
    assert (again.status().state, again.status().steps, again.status().task) == (State.PENDING, 2, "job")
    assert works.run(works.order, id=again.id) == ["r1", "p1"]
    assert works.counts() == {"load": 1, "charge": 1, "ship": 2, "mail": 2}
    assert works.entries(again.id) == works.entries("one")
    assert (first.status().state, first.result(), again.result()) == (State.COMPLETED, ["r1", "p1"], ["r1", "p1"])
    assert (first.status().steps, again.status().steps) == (4, 4)


@everywhere
def test_keys_of_what_is_new_are_new_and_of_what_is_shared_are_the_old_ones(works: Works) -> None:
    first = works.call(works.order)
    again = first.rerun("ship")
    works.run(works.order, id=again.id)
    keys = [[step.key for step in found.steps() if step.key] for found in (first, again)]
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    assert [entry["key"] for entry in works.ledger.entries("ship")] == [keys[0][1].hex(), keys[1][1].hex()]


@everywhere
def test_from_the_start_everything_is_new(works: Works) -> None:
    again = works.call(works.order).rerun()
    assert again.steps() == []
    works.run(works.order, id=again.id)
    assert works.counts() == {"load": 2, "charge": 2, "ship": 2, "mail": 2}


@everywhere
def test_from_the_end_nothing_is_done_again(works: Works) -> None:
    again = works.call(works.order).rerun(4)
    assert works.run(works.order, id=again.id) == ["r1", "p1"]
    assert works.counts() == {"load": 1, "charge": 1, "ship": 1, "mail": 1}


def test_what_the_application_has_named_is_not_done_again(works: Works) -> None:
    named = charging(OnAmbiguous.RERUN, key="order-1")
    body = lambda ctx: [ctx.step("a", works.fires("load")), ctx.step(named, works.fires("charge", "r1"))]  # noqa: E731
    again = works.call(body).rerun("charge")
    assert works.run(body, id=again.id) == [None, "r1"]
    assert (works.counts()["load"], works.counts()["charge"]) == (1, 1)


@everywhere
def test_branches_go_with_the_scope_that_they_are_in(works: Works) -> None:
    def body(ctx: DurableContext) -> Any:
        ctx.step("load", works.fires("load"))
        found = []
        for name in ("charge", "ship"):
            with ctx.parallel() as branches:
                inner = [branches.submit(nested, ctx, name) for _ in range(2)]
            found.append([branch.result() for branch in inner])
        return found

    def nested(ctx: DurableContext, name: str) -> Any:
        with ctx.parallel() as branches:
            return branches.step(charging(OnAmbiguous.RERUN), works.fires(name, name)).result()

    first = works.call(body)
    assert [step.position for step in first.steps()] == ["0", "1.0/0.0/0", "1.1/0.0/0", "2.0/0.0/0", "2.1/0.0/0"]
    again = first.rerun(2)
    assert works.run(body, id=again.id) == [["charge"] * 2, ["ship"] * 2]
    assert (works.counts()["charge"], works.counts()["ship"]) == (2, 4)
    assert works.entries(again.id) == works.entries("one")


def test_errors_are_shared_too(works: Works) -> None:
    def body(ctx: DurableContext) -> Any:
        with pytest.raises(Timeout, match="no answer"):
            ctx.step("load", works.operation("load", None, Timeout("no answer")))
        return ctx.step("mail", works.fires("mail", "sent"))

    again = works.call(body).rerun("mail")
    assert works.run(body, id=again.id) == "sent"
    assert (works.counts()["load"], works.counts()["mail"]) == (1, 2)


@everywhere
@pytest.mark.parametrize("position", [3, 9, 15])
def test_a_checkpoint_is_cut_where_the_journal_is(make_lab: Callable[..., Any], position: int) -> None:
    works: Works = make_lab(Works, durable_max_steps=16)
    body = lambda ctx: [ctx.step("each", works.operation("each", number), number) for number in range(16)]  # noqa: E731
    first = works.call(body)
    assert any("CHECKPOINT" in entry for entry in works.entries())
    again = first.rerun(position)
    assert [step.value() for step in again.steps()] == list(range(position))
    assert [(s.position, s.at, s.duration) for s in again.steps()] == [
        (s.position, s.at, s.duration) for s in first.steps()[:position]
    ]
    assert works.run(body, id=again.id) == list(range(16))
    assert works.ledger.count("each") == 16 + 16 - position


@everywhere
def test_what_a_branch_did_is_shared_whole(works: Works) -> None:
    """Its positions are its own: nothing of it lies beyond the position of the body at which the journal is cut."""

    def body(ctx: DurableContext) -> list[Any]:
        with ctx.parallel(max_workers=1) as branches:
            part = branches.submit(lambda: [ctx.step("part", works.operation("part", n), n) for n in range(9)])
        return [part.result(), *(ctx.step("each", works.operation("each", n), n) for n in range(5))]

    first = works.call(body)
    assert "0.0/0 CHECKPOINT checkpoint" in works.entries()
    again = first.rerun(3)
    assert [step.position for step in again.steps()] == [*(f"0.0/{n}" for n in range(9)), "1", "2"]
    assert works.run(body, id=again.id) == [list(range(9)), *range(5)]
    assert (works.ledger.count("part"), works.ledger.count("each")) == (9, 5 + 3)


def test_a_patch_that_was_taken_is_taken_again(works: Works) -> None:
    def body(ctx: DurableContext) -> Any:
        return [
            ctx.patched("change") and ctx.step("new", works.fires("load", 1)),
            ctx.step("mail", works.fires("mail")),
        ]

    again = works.call(body).rerun("mail")
    assert works.run(body, id=again.id) == [1, None]
    assert (works.counts()["load"], works.execution(again.id).generation) == (1, 1)
    assert works.entries(again.id) == works.entries("one")


@everywhere
def test_only_the_present_generation_is_shared(works: Works) -> None:
    works.call(lambda ctx: (ctx.step("old", works.fires("load")), ctx.step("die", works.operation("die", 0, Crash()))))
    works.run(works.order)
    assert works.execution().generation == 2
    again = celery_durable.get("one", works.app).rerun("charge")
    assert (again.status().generation, [s.name for s in again.steps()]) == (1, ["load"])
    works.run(works.order, id=again.id)
    assert works.counts() == {"load": 2, "charge": 2, "ship": 2, "mail": 2}


def test_a_rerun_can_be_run_anew(works: Works) -> None:
    again = works.call(works.order).rerun("mail")
    works.run(works.order, id=again.id)
    third = again.rerun("mail")
    works.run(works.order, id=third.id)
    assert works.counts() == {"load": 1, "charge": 1, "ship": 1, "mail": 3}


def test_a_failed_one_can_begin_after_its_last_step(works: Works) -> None:
    def body(ctx: DurableContext) -> Any:
        ctx.step("load", works.fires("load"))
        return ctx.step("mail", works.operation("mail", "sent", *trouble))

    trouble: list[Any] = [ValueError("no")]
    first = works.call(body)
    assert (first.status().state, len(first.steps())) == (State.FAILED, 1)
    again = first.rerun(1)
    trouble.clear()
    assert works.run(body, id=again.id) == "sent"
    assert works.counts()["load"] == 1


# -- what is waited for -------------------------------------------------------------------------------------------


def approving(works: Works) -> Callable[[DurableContext], Any]:
    """Gives a promise away, and waits for it."""

    def body(ctx: DurableContext) -> Any:
        promise = ctx.promise("approval")
        ctx.step("ask", works.fires("ask"), promise.id, promise.token)
        given.append(promise)
        verdict = ctx.wait(promise)
        return [verdict, ctx.step("mail", works.fires("mail", "sent"))]

    given: list[Any] = []
    body.given = given  # type: ignore[attr-defined]
    return body


@pytest.fixture(params=[None, "a secret of the tests"], ids=["kept token", "derived token"])
def waiting(request: pytest.FixtureRequest, make_lab: Callable[..., Any]) -> Works:
    made: Works = make_lab(Works, **({} if request.param is None else {"durable_secret": request.param}))
    return made


@everywhere
def test_a_verdict_is_shared_with_the_promise_that_it_is_of(waiting: Works) -> None:
    works, body = waiting, approving(waiting)
    works.job.apply_async(durable_id="one")
    Delivery(works).suspends(body)
    promise = body.given[0]  # type: ignore[attr-defined]
    celery_durable.resolve(promise.id, promise.token, "yes", app=works.app)
    assert works.run(body) == ["yes", "sent"]
    again = celery_durable.get("one", works.app).rerun("mail")
    assert works.run(body, id=again.id) == ["yes", "sent"]
    assert [works.ledger.count(name) for name in ("ask", "mail")] == [1, 2]
    assert works.execution(again.id).generation == 1


@everywhere
@pytest.mark.parametrize("resolved", ["before", "after"])
def test_a_promise_that_was_given_away_before_the_cut_is_the_old_one(waiting: Works, resolved: str) -> None:
    """Whoever has its token knows of no other."""
    works, body = waiting, approving(waiting)
    works.job.apply_async(durable_id="one")
    Delivery(works).suspends(body)
    promise = body.given[0]  # type: ignore[attr-defined]

    def resolve() -> None:
        celery_durable.resolve(promise.id, promise.token, "yes", app=works.app)

    if resolved == "before":
        resolve()
    celery_durable.get("one", works.app).cancel()
    celery_durable.get("one", works.app).rerun(2, durable_id="two")
    deliver = Delivery(works)
    if resolved == "after":
        deliver.suspends(body, id="two")
        resolve()
        # Whoever keeps it sends the new one's message; recovery does so where nothing came of that.
        assert deliver.due() == []
        deliver.elapse(10)
        assert deliver.resumes(body, id="two") == ["yes", "sent"]
    else:
        assert deliver(body, id="two") == ["yes", "sent"]
    assert [works.ledger.count(name) for name in ("ask", "mail")] == [1, 1]
    assert works.execution("two").generation == 1


def test_a_wait_that_has_not_ended_cannot_be_shared(works: Works) -> None:
    body = approving(works)
    works.job.apply_async(durable_id="one")
    Delivery(works).suspends(body)
    first = celery_durable.get("one", works.app)
    first.cancel()
    with pytest.raises(WrongState, match=r"wait 'approval' \(position 2\) of execution one has not ended"):
        first.rerun(3)
    with pytest.raises(UnknownStep) as caught:
        first.rerun("nothing")
    assert caught.value.message.endswith("one:\n  0  approval (promise)\n  1  ask\n  2  approval (wait)")


def test_a_sleep_that_is_over_is_not_slept_again(works: Works) -> None:
    def body(ctx: DurableContext) -> Any:
        timer = ctx.timer(seconds=0.01)
        ctx.sleep(0)
        ctx.wait(timer)
        return ctx.step("mail", works.fires("mail", "sent"))

    first = works.call(body)
    again = first.rerun("mail")
    assert works.run(body, id=again.id) == "sent"
    assert works.entries(again.id) == works.entries("one")
    third = first.rerun(2)
    assert works.run(body, id=third.id) == "sent"


# -- the message --------------------------------------------------------------------------------------------------


@everywhere
def test_the_message_is_the_old_one_under_a_new_id(works: Works) -> None:
    works.job.apply_async(
        (1,), {"b": [2]}, durable_id="one", shadow="s", headers={"tenant": "acme"}, expires=600, priority=3
    )
    old = works.take()
    works.run(lambda ctx, *args, **kwargs: None, 1, b=[2])
    again = celery_durable.get("one", works.app).rerun(durable_id="two")
    new = works.take()
    assert (again.id, new["headers"]["id"], new["headers"]["root_id"], new["headers"]["parent_id"]) == (
        "two",
        "two",
        "two",
        None,
    )
    assert new["properties"]["correlation_id"] == "two"
    assert (new["body"], new["headers"]["tenant"], new["headers"]["shadow"]) == (old["body"], "acme", "s")
    assert (new["headers"]["expires"], new["headers"]["durable_rerun_of"]) == (None, "one")
    # Recovery sends it as it is stored.
    assert works.envelope("one")["headers"]["expires"]
    assert not works.envelope("two")["headers"]["expires"]
    assert new["properties"]["priority"] == 3
    assert works.execution("two").wake_at is not None


def test_what_hangs_behind_it_hangs_behind_the_new_one_under_new_ids(works: Works) -> None:
    other = works.task("other", lambda task, *args: None)
    nested = chord([other.s(1), other.s(2)], other.s(3))
    call = chain(works.job.s().set(durable_id="one"), nested, other.s(4), other.s(5).set(durable_id="chosen"))
    call.apply_async(link=other.s("link"), link_error=[other.si("error")])
    works.run(lambda ctx: None)
    celery_durable.get("one", works.app).rerun(durable_id="two")
    (_, _, old), (_, _, new) = (_body(works, id_) for id_ in ("one", "two"))
    before, after = _ids(old["chain"]), _ids(new["chain"])
    assert len(before) == len(after) > 5
    assert [one == another for one, another in zip(before, after, strict=True)] == [id_ == "chosen" for id_ in before]
    # Equal ones stay equal: the parts of a canvas refer to each other.
    assert len(set(before)) == len(set(after))
    assert [_without_ids(new[kind]) for kind in new] == [_without_ids(old[kind]) for kind in new]

    celery_durable.get("one", works.app).rerun(durable_id="three", callbacks=False)
    assert _body(works, "three")[2] == dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))


def test_it_is_no_member_of_a_chord_or_group(works: Works) -> None:
    other = works.task("other", lambda task, *args: None)
    works.app.conf.durable_outbox = True
    members = [chain(works.job.s().set(task_id="one"), other.s()), other.s(1)]
    chord(members)(other.s("body"))
    works.run(lambda ctx: None)
    assert works.envelope("one")["headers"]["group"] is None
    assert "chord" in str(_body(works, "one")[2]["chain"])
    celery_durable.get("one", works.app).rerun(durable_id="two")
    embed = _body(works, "two")[2]
    assert (len(embed["chain"]), "chord" in str(embed["chain"]), "group_id" in str(embed["chain"])) == (1, False, False)

    group([works.job.s().set(durable_id="three"), other.s(1)])()
    works.run(lambda ctx: None, id="three")
    assert works.envelope("three")["headers"]["group"]
    celery_durable.get("three", works.app).rerun(durable_id="four")
    assert works.envelope("four")["headers"]["group"] is None


def _body(works: Works, id_: str) -> tuple[Any, Any, dict[str, Any]]:
    """Positional arguments, keyword arguments and the rest of the canvas in a stored message."""
    return envelopes.accepted_body(works.app, works.envelope(id_))


def _ids(value: Any) -> list[str]:
    """The task and group ids in a canvas."""
    if isinstance(value, dict):
        own = [value[key] for key in ("task_id", "group_id") if isinstance(value.get(key), str)]
        return own + [found for item in value.values() for found in _ids(item)]
    return [found for item in value for found in _ids(item)] if isinstance(value, list) else []


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        gone = ("task_id", "group_id", "root_id", "parent_id")
        return {key: _without_ids(item) for key, item in value.items() if key not in gone}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def test_a_message_that_cannot_be_read_here_is_not_run_anew(works: Works) -> None:
    works.call(works.order, serializer="pickle")
    refused = r"message of execution one cannot be read here: .*which this application does not accept"
    with pytest.raises(celery_durable.PayloadError, match=refused):
        celery_durable.get("one", works.app).rerun()


# -- ids ----------------------------------------------------------------------------------------------------------


@everywhere
def test_a_rerun_with_an_id_is_started_once(works: Works) -> None:
    first = works.call(works.order)
    assert [first.rerun("ship", durable_id="two").id for _ in range(2)] == ["two", "two"]
    works.run(works.order, id="two")
    first.rerun(2, durable_id="two")
    assert works.counts()["ship"] == 2
    assert len(works.operations.find()) == 2
    for other in (lambda: first.rerun("mail", durable_id="two"), lambda: first.rerun(2, durable_id="one")):
        with pytest.raises(DurableIdConflict, match="as a rerun of one from position"):
            other()
    with pytest.raises(DurableIdConflict, match=r"then  job \(\) {}, as a rerun of one\n  now   job \(\) {}\n"):
        works.job.apply_async(durable_id="two")


def test_an_id_that_cannot_be_one_is_refused(works: Works) -> None:
    first = works.call(works.order)
    with pytest.raises(ConfigurationError, match="durable_id is empty"):
        first.rerun(durable_id="")


# -- what is refused ----------------------------------------------------------------------------------------------

LISTED = "The steps of execution one:\n  0  load\n  1  charge\n  2  ship\n  3  mail"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("nothing", f"no step is named 'nothing'. {LISTED}"),
        (5, f"there is no position 5; the journal ends at 4. {LISTED}"),
        (-1, f"there is no position -1; the journal ends at 4. {LISTED}"),
        (True, f"from_step = True is neither a position nor a name. {LISTED}"),
        (1.5, f"from_step = 1.5 is neither a position nor a name. {LISTED}"),
    ],
)
def test_a_step_that_is_not_there_is_refused(works: Works, step: Any, message: str) -> None:
    first = works.call(works.order)
    with pytest.raises(UnknownStep) as caught:
        first.rerun(step)
    assert caught.value.message == message
    assert len(works.operations.find()) == 1


def test_a_name_that_several_steps_have_is_refused(works: Works) -> None:
    first = works.call(lambda ctx: [ctx.step("each", str, number) for number in (1, 2)] and ctx.step("last", str, 3))
    with pytest.raises(UnknownStep) as caught:
        first.rerun("each")
    assert caught.value.message == (
        "2 steps are named 'each': say which by its position. The steps of execution one:\n  0  each\n  1  each"
    )


@pytest.mark.parametrize("step", ["left", "1.0/0"])
def test_a_step_in_a_branch_is_refused(works: Works, step: str) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.step("first", str, 1)
        with ctx.parallel() as branches:
            branches.step("left", str, 1)

    with pytest.raises(UnknownStep, match=r"position 1.0/0 .* is in a branch.* around it has position 1\."):
        works.call(body).rerun(step)


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.SUSPENDED])
def test_one_that_has_not_ended_is_refused(works: Works, state: State) -> None:
    first = works.call(works.order)
    works.sql(sa.update(executions).values(state=state.value))
    with pytest.raises(WrongState, match=f"execution one is {state}; only one that has ended, or is parked"):
        first.rerun()


def test_a_pruned_one_and_an_eager_one_are_refused(works: Works) -> None:
    works.run(works.order, id="eager")
    with pytest.raises(WrongState, match="execution eager ran eagerly"):
        celery_durable.get("eager", works.app).rerun()
    first = works.call(works.order)
    works.sql(sa.update(executions).values(pruned_at=1))
    with pytest.raises(WrongState, match="execution one was pruned"):
        first.rerun()


@everywhere
def test_what_has_not_ended_cannot_be_shared(works: Works) -> None:
    """Two executions would have one doubt."""

    def body(ctx: DurableContext) -> Any:
        ctx.step("load", works.fires("load"))
        return ctx.step(SHIP, works.operation("ship", "p1", *trouble))

    trouble: list[Any] = [Timeout("no answer")]
    first = works.call(body)
    assert first.status().parked
    with pytest.raises(WrongState, match=r"step 'ship' \(position 1\) .* \(it is in doubt\).*from_step=1 or less"):
        first.rerun(2)
    trouble.clear()
    again = first.rerun("ship")
    assert works.run(body, id=again.id) == "p1"
    assert (works.counts()["load"], works.counts()["ship"], first.status().state) == (1, 2, State.AMBIGUOUS)


def test_a_guarded_step_whose_try_failed_is_not_shared(works: Works) -> None:
    first = works.call(lambda ctx: ctx.step(CHARGE, works.operation("charge", None, ValueError("declined"))))
    assert (first.status().state, first.steps()[0].outcome) == (State.FAILED, "failed")
    with pytest.raises(WrongState, match="has not ended"):
        first.rerun(1)


# -- at once or not at all ----------------------------------------------------------------------------------------


@everywhere
def test_an_execution_that_changes_meanwhile_is_not_copied(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    first = works.call(works.order)
    real = store.Operations.entries

    def entries(self: Any, *args: Any, **options: Any) -> Any:
        found = real(self, *args, **options)
        works.sql(sa.update(executions).where(executions.c.id == "one").values(epoch=executions.c.epoch + 1))
        return found

    monkeypatch.setattr(store.Operations, "entries", entries)
    with pytest.raises(WrongState, match="execution one has just changed"):
        first.rerun("ship", durable_id="two")
    assert [row.id for row in works.operations.find()] == ["one"]


@everywhere
def test_a_rerun_is_recorded_whole_or_not_at_all(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    first = works.call(works.order)
    monkeypatch.setenv(FAULT_VARIABLE, "rerun.before_commit=raise")
    faults.reload()
    with pytest.raises(RuntimeError, match="fault point"):
        first.rerun("ship", durable_id="two")
    monkeypatch.delenv(FAULT_VARIABLE)
    faults.reload()
    assert [row.id for row in works.operations.find()] == ["one"]
    first.rerun("ship", durable_id="two")
    assert works.entries("two") == works.entries("one")[:3]


def test_a_rerun_whose_broker_is_down_is_accepted(works: Works) -> None:
    first = works.call(works.order)
    works.app.conf.update(broker_url="redis://127.0.0.1:1", task_publish_retry=False)
    again = first.rerun("ship", durable_id="two")
    assert again.status().state is State.PENDING
