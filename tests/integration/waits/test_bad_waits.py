"""What users get wrong about waiting, calling and following is told them at once, in words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain

import celery_durable
from celery_durable import (
    ConfigurationError,
    DurableContext,
    ExecutionCancelled,
    FingerprintError,
    ResultTimeout,
    State,
    UnknownExecution,
    WrongToken,
    enqueue,
)
from celery_durable.store.records import PayloadKind
from tests.support.delivery import Delivery
from tests.support.lab import Lab, everywhere


def test_what_another_execution_has_made_cannot_be_waited_for(lab: Lab, deliver: Delivery) -> None:
    """Its settlement would wake the other one only: the body would wait for ever."""
    made: dict[str, Any] = {}

    def maker(ctx: DurableContext) -> None:
        made.update(promise=ctx.promise("theirs"), timer=ctx.timer(1))

    lab.run(maker)
    for body in (
        lambda ctx: ctx.wait(made["promise"]),
        lambda ctx: ctx.wait(made["timer"]),
        lambda ctx: ctx.select(mine=ctx.promise("mine"), theirs=made["promise"]),
    ):
        with pytest.raises(ConfigurationError, match="was made by execution one, and execution two cannot wait for it"):
            deliver(body, id="two")
        lab.operations.resume("two")


def test_what_a_body_keeps_from_its_own_earlier_run_can_be_waited_for(lab: Lab, deliver: Delivery) -> None:
    made: list[Any] = []

    def body(ctx: DurableContext) -> Any:
        made.append(ctx.promise("approval"))
        return ctx.wait(made[0])

    deliver.suspends(body)
    celery_durable.resolve(made[0].id, made[0].token, "yes", app=lab.app)
    assert deliver(body) == "yes"


def calls(do: Callable[[DurableContext, Any], Any]) -> Callable[[DurableContext, Lab], Any]:
    return lambda ctx, lab: do(ctx, lab.app.signature("job"))


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "delivered"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (calls(lambda ctx, job: ctx.call(chain())), r"call\(\) of an empty chain: there is nothing to wait for"),
        (calls(lambda ctx, job: ctx.gather(job, chain())), r"gather\(\) of an empty chain"),
        (calls(lambda ctx, job: ctx.call(chain(chain(), chain()))), r"call\(\) of an empty chain"),
        (calls(lambda ctx, job: ctx.call(chain(chain()))), r"call\(\) of an empty chain"),
        (calls(lambda ctx, job: ctx.gather(job, tolerate=None)), r"gather\(tolerate=None\): it is a whole number"),
        (calls(lambda ctx, job: ctx.gather(job, concurrency=0)), r"gather\(concurrency=0\): .* 1 or more"),
        (calls(lambda ctx, job: ctx.call(job.set(durable_id="x"))), r"the child task job has a durable_id"),
        (calls(lambda ctx, job: ctx.map(None, [1])), r"map\(\) takes a function and the items .* not None"),
        (calls(lambda ctx, job: ctx.map(str, 5)), r"map\(\) takes the items as a list .* not 5"),
        (calls(lambda ctx, job: ctx.map(str, [1], concurrency="a")), r"map\(concurrency='a'\): it is a whole number"),
        (calls(lambda ctx, job: ctx.map(str, [1], concurrency=1.5)), r"map\(concurrency=1.5\): it is a whole number"),
        (calls(lambda ctx, job: ctx.timer()), r"timer\(\) takes exactly one of: a duration"),
        (calls(lambda ctx, job: ctx.timer(5, days=0)), r"timer\(\) takes exactly one of: a duration"),
    ],
)
def test_what_cannot_be_meant_is_refused(lab: Lab, deliver: Delivery, body: Any, message: str, eager: bool) -> None:
    run = lab.run if eager else deliver
    with pytest.raises(ConfigurationError, match=message):
        run(lambda ctx: body(ctx, lab))
    assert lab.state() is State.FAILED
    # Nothing was started, and nothing is journaled of it.
    assert lab.entries() == []


def test_a_timer_of_no_time_is_due(lab: Lab) -> None:
    assert lab.run(lambda ctx: ctx.select(now=ctx.timer(days=0)).key) == "now"


def test_a_child_that_is_not_known_here_cannot_run_eagerly(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="child 'nope' cannot run: no task 'nope' is registered"):
        lab.run(lambda ctx: ctx.call(lab.app.signature("nope", (1,))))


def test_an_argument_that_no_replay_knows_again_is_told_with_its_place(lab: Lab) -> None:
    with pytest.raises(
        FingerprintError, match=r"the call 'job' has no canonical form: \$\[1\]\[0\] .* Pass plain data"
    ):
        lab.run(lambda ctx: ctx.call(lab.job.s(object())))


@pytest.mark.parametrize("timeout", ["1", float("nan"), True, [1]])
def test_a_result_is_waited_for_in_seconds(lab: Lab, deliver: Delivery, timeout: Any) -> None:
    deliver.suspends(lambda ctx: ctx.sleep(9))
    with pytest.raises(ConfigurationError, match=r"result\(timeout=\) takes seconds, or None"):
        celery_durable.get("one", lab.app).result(timeout=timeout)
    with pytest.raises(ResultTimeout, match="has not ended within -1 s"):
        celery_durable.get("one", lab.app).result(timeout=-1)


def test_a_reason_is_a_text(lab: Lab, deliver: Delivery) -> None:
    deliver.suspends(lambda ctx: ctx.sleep(9))
    with pytest.raises(ConfigurationError, match=r"cancel\(\) takes the reason as a text, not 5"):
        celery_durable.get("one", lab.app).cancel(5)  # type: ignore[arg-type]
    assert lab.state() is State.SUSPENDED


@pytest.mark.parametrize(
    "ask", [lambda app: celery_durable.get("one", app), lambda app: celery_durable.resolve("a", "b", app=app)]
)
def test_an_application_is_one(ask: Callable[[Any], Any]) -> None:
    with pytest.raises(ConfigurationError, match="app= takes a Celery application, not 'shop'"):
        ask("shop")


@pytest.mark.parametrize("args", [1, "abc", object()])
def test_enqueue_takes_arguments_as_apply_async_does(make_lab: Callable[..., Lab], tmp_path: Any, args: Any) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    lab = make_lab(durable_database_url=url)
    with sa.create_engine(url).connect() as connection:
        with pytest.raises(ConfigurationError, match=r"arguments as a list or tuple, as apply_async does, not "):
            enqueue(connection, lab.job, args)
        with pytest.raises(ConfigurationError, match=r"keyword arguments as a dict, not 5"):
            enqueue(connection, lab.job, (), 5)  # type: ignore[arg-type]


# -- texts that some databases refuse -----------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: processes of the tests cannot tell each other of such texts."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


LONE = "caf\ud800"


@everywhere
@pytest.mark.parametrize(
    "text",
    ["a\0b", "\ud800", "one ", "ONE", "\U0001f600", "x" * 5000, None, 5],
    ids=["nul", "surrogate", "blank", "case", "emoji", "long", "none", "number"],
)
def test_what_can_be_no_id_is_unknown(lab: Lab, text: Any) -> None:
    """It may come from a URL: no error of the database's."""
    lab.run(lambda ctx: None)
    with pytest.raises(UnknownExecution, match="there is no execution"):
        celery_durable.get(text, lab.app)
    with pytest.raises(WrongToken):
        celery_durable.resolve(text, "token", app=lab.app)
    assert lab.runtime.promises.target(str(text)) is None


@everywhere
def test_a_reason_may_be_any_text(lab: Lab, deliver: Delivery) -> None:
    deliver.suspends(lambda ctx: ctx.sleep(9))
    celery_durable.get("one", lab.app).cancel(f"{LONE} \0")
    with pytest.raises(ExecutionCancelled, match=r"was cancelled: caf\\ud800 \0"):
        celery_durable.get("one", lab.app).result()


@everywhere
@pytest.mark.usefixtures("quiet")
def test_an_execution_is_parked_whatever_the_error_says(lab: Lab) -> None:
    def undo() -> None:
        raise OSError(f"no such file: {LONE}")

    def body(ctx: DurableContext) -> None:
        ctx.on_failure(undo)
        raise ValueError(LONE)

    # What the error says may be a value: it is kept, and not told unasked.
    assert "a compensation failed with OSError" in lab.parks(body)
    assert lab.state() is State.QUARANTINED
    kept = lab.operations.payload(lab.execution().pk, PayloadKind.REASON)
    assert kept is not None
    assert r"no such file: caf\ud800" in kept.data.decode()
