"""``durable_id``: a call that is made twice is done once, and another call under its id is refused."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, chord, group

from celery_durable import ConfigurationError, DurableIdConflict, FingerprintError, outbox_batch
from celery_durable.store.records import State
from celery_durable.store.recovery import RecoveryStore
from celery_durable.store.tables import executions, journal, payloads
from tests.support.lab import Crash, Lab, everywhere


class Shop(Lab):
    """Tasks, and a queue that nobody consumes."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.queue = f"start-once-{secrets.token_hex(6)}"
        usual = {"result_backend": "cache+memory://", "task_default_queue": self.queue}
        super().__init__(*args, **{**usual, **settings})
        self.fulfil = self.task("fulfil", lambda task, *args, **kwargs: self.done("fulfil", *args))
        self.refund = self.task("refund", lambda task, *args, **kwargs: self.done("refund", *args))

    def done(self, name: str, *args: Any) -> list[Any]:
        self.ledger.fire(name)
        return list(args)

    def sent(self) -> list[str]:
        """The ids of the messages that were published, in order; they stay."""
        with self.app.connection_for_read() as connection:
            queue = connection.default_channel.queues.get(self.queue)
            return [] if queue is None else [message["headers"]["id"] for message in list(queue.queue)]

    def change(self, id: str, **values: Any) -> None:  # noqa: A002
        self.sql(sa.update(executions).where(executions.c.id == id).values(**values))

    def prune(self, id: str) -> None:  # noqa: A002
        pk = self.execution(id).pk
        self.sql(sa.delete(payloads).where(payloads.c.pk == pk))
        self.sql(sa.delete(journal).where(journal.c.pk == pk))
        self.change(id, state="completed", pruned_at=1, wake_at=None)


@pytest.fixture
def make_shop(make_lab: Callable[..., Any]) -> Callable[..., Shop]:
    def make(**settings: Any) -> Shop:
        shop: Shop = make_lab(Shop, **settings)
        return shop

    return make


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    return make_shop()


# -- the same call ------------------------------------------------------------------------------------------------


@everywhere
def test_the_same_call_is_sent_once(shop: Shop) -> None:
    first = shop.fulfil.apply_async((1,), {"note": "x"}, durable_id="order-1")
    again = shop.fulfil.apply_async((1,), {"note": "x"}, durable_id="order-1", countdown=5)
    assert (first.id, again.id, shop.sent()) == ("order-1", "order-1", ["order-1"])
    row = shop.execution("order-1")
    # Recovery sends it, should the message be lost.
    assert (row.state, row.task, row.wake_at is not None) == (State.PENDING, "fulfil", True)


@everywhere
@pytest.mark.parametrize("args", [(2,), (), (1, 2), ("1",), (True,)])
def test_another_call_under_its_id_is_refused(shop: Shop, args: tuple[Any, ...]) -> None:
    shop.fulfil.apply_async((1,), durable_id="order-1")
    with pytest.raises(DurableIdConflict) as caught:
        shop.fulfil.apply_async(args, durable_id="order-1")
    assert f"  then  fulfil (1,) {{}}\n  now   fulfil {args!r} {{}}\n" in str(caught.value)
    assert (caught.value.execution_id, caught.value.task) == ("order-1", "fulfil")
    assert shop.sent() == ["order-1"]


def test_a_call_of_another_task_under_its_id_is_refused(shop: Shop) -> None:
    shop.fulfil.apply_async((1,), durable_id="order-1")
    with pytest.raises(DurableIdConflict, match=r"then  fulfil \(1,\) {}\n  now   refund \(1,\) {}"):
        shop.refund.apply_async((1,), durable_id="order-1")


def test_what_a_caller_hides_from_the_log_is_not_shown(shop: Shop) -> None:
    shop.fulfil.apply_async(("4111",), {"pin": "0000"}, argsrepr="(***)", kwargsrepr="{***}", durable_id="order-1")
    with pytest.raises(DurableIdConflict) as caught:
        shop.fulfil.apply_async(("4222",), argsrepr="(***)", durable_id="order-1")
    assert "then  fulfil (***) {***}\n  now   fulfil (***) {}" in str(caught.value)
    assert "4111" not in str(caught.value) + repr(vars(caught.value))


def test_arguments_are_compared_as_the_body_receives_them(shop: Shop) -> None:
    """JSON makes lists of tuples, and text of the keys of a mapping; the order of keywords says nothing."""
    shop.fulfil.apply_async(((1, 2), {1: "a"}), {"b": 1, "c": 2}, durable_id="order-1")
    shop.fulfil.apply_async([[1, 2], {"1": "a"}], {"c": 2, "b": 1}, durable_id="order-1")
    assert shop.sent() == ["order-1"]
    with pytest.raises(DurableIdConflict):
        shop.fulfil.apply_async(([2, 1], {"1": "a"}), {"c": 2, "b": 1}, durable_id="order-1")


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED, State.FAILED, State.CANCELLED, State.AMBIGUOUS])
def test_whatever_has_become_of_it_it_is_not_sent_again(shop: Shop, state: State) -> None:
    shop.fulfil.apply_async((1,), durable_id="order-1")
    shop.change("order-1", state=state.value)
    assert shop.fulfil.apply_async((1,), durable_id="order-1").id == "order-1"
    with pytest.raises(DurableIdConflict, match=f"another call \\({state}, created 20"):
        shop.fulfil.apply_async((2,), durable_id="order-1")
    assert (shop.sent(), shop.state("order-1")) == (["order-1"], state)


@everywhere
def test_a_pruned_one_is_not_done_again(shop: Shop) -> None:
    shop.fulfil.apply_async((1,), durable_id="order-1")
    shop.prune("order-1")
    assert shop.fulfil.apply_async((1,), durable_id="order-1").id == "order-1"
    with pytest.raises(DurableIdConflict, match=r"then  fulfil \(its arguments were pruned\)"):
        shop.fulfil.apply_async((2,), durable_id="order-1")
    assert shop.sent() == ["order-1"]


def test_one_that_another_task_goes_on_with_is_still_the_call_that_was_made(shop: Shop) -> None:
    shop.fulfil.apply_async((1,), durable_id="order-1")
    shop.change("order-1", task="refund")  # Task.replace
    assert shop.fulfil.apply_async((1,), durable_id="order-1").id == "order-1"
    with pytest.raises(DurableIdConflict):
        shop.refund.apply_async((1,), durable_id="order-1")


@everywhere
def test_one_that_was_started_by_its_task_id_is_known_by_its_message(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(durable_outbox=True)
    shop.fulfil.apply_async((1,), task_id="order-1")
    with pytest.raises(DurableIdConflict, match=r"then  fulfil \(1,\) {}"):
        shop.fulfil.apply_async((2,), durable_id="order-1")
    shop.fulfil.apply_async((1,), durable_id="order-1")
    shop.sql(sa.delete(payloads))
    shop.fulfil.apply_async((1,), durable_id="order-1")  # known by its hash now
    assert shop.sent() == ["order-1"]


def test_one_of_which_nobody_knows_the_arguments_is_another_call(shop: Shop) -> None:
    shop.fulfil.apply((1,), task_id="order-1")
    with pytest.raises(DurableIdConflict, match=r"then  fulfil \(its arguments are not stored\)"):
        shop.fulfil.apply_async((1,), durable_id="order-1")


@everywhere
def test_namespaces_have_ids_of_their_own(make_shop: Callable[..., Shop]) -> None:
    shop, other = make_shop(), make_shop(durable_namespace="other")
    shop.fulfil.apply_async((1,), durable_id="order-1")
    other.fulfil.apply_async((2,), durable_id="order-1")
    assert [shop.sent(), other.sent()] == [["order-1"], ["order-1"]]


# -- races and losses ---------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("other", [1, 2], ids=["same call", "another call"])
def test_of_two_callers_at_the_same_time_one_sends(shop: Shop, monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """Both have looked before either writes, where the database lets them."""
    both = threading.Barrier(2)
    real = RecoveryStore._known

    def known(self: RecoveryStore, *args: Any) -> Any:
        found = real(self, *args)
        try:
            both.wait(0.5)
        except threading.BrokenBarrierError:
            pass  # SQLite has one writer
        return found

    monkeypatch.setattr(RecoveryStore, "_known", known)
    answers: list[Any] = []

    def call(number: int) -> None:
        try:
            answers.append(shop.fulfil.apply_async((number,), durable_id="order-1").id)
        except DurableIdConflict as error:
            answers.append(type(error))

    callers = [threading.Thread(target=call, args=(number,)) for number in (1, other)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(map(str, answers)) == sorted(map(str, ["order-1", "order-1" if other == 1 else DurableIdConflict]))
    assert shop.sent() == ["order-1"]


def test_a_call_whose_broker_is_down_is_accepted(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(broker_url="redis://127.0.0.1:1", task_publish_retry=False)
    assert shop.fulfil.apply_async((1,), durable_id="order-1").id == "order-1"
    assert shop.state("order-1") is State.PENDING


@everywhere
def test_a_call_whose_record_was_not_acknowledged_is_sent(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commit went through, and nobody heard of it."""
    database = shop.runtime.database
    real = type(database).write
    lost = [True]

    def write(self: Any, work: Any, **options: Any) -> Any:
        answer = real(self, work, **options)
        if lost:
            lost.pop()
            answer = real(self, work, **options)
        return answer

    monkeypatch.setattr(type(database), "write", write)
    shop.fulfil.apply_async((1,), durable_id="order-1")
    assert shop.sent() == ["order-1"]


# -- ways of calling ----------------------------------------------------------------------------------------------


def test_signatures_carry_it(shop: Shop) -> None:
    signature = shop.fulfil.s(1).set(durable_id="a")
    assert [signature.apply_async().id, signature.clone().apply_async().id, signature.delay().id] == ["a", "a", "a"]
    assert shop.fulfil.signature((1,), durable_id="b").apply_async().id == "b"
    assert shop.fulfil.si(1).set(durable_id="b").set(durable_id="c").apply_async().id == "c"
    assert shop.fulfil.s(1).apply_async(durable_id="d").id == "d"
    assert shop.app.signature("fulfil", (1,)).set(durable_id="e").apply_async().id == "e"
    assert shop.app.send_task("fulfil", (1,), task_id="f", durable_id="f").id == "f"
    assert shop.sent() == ["a", "b", "c", "d", "e", "f"]
    assert shop.fulfil.apply_async((1,), durable_id=None).id not in "abcdef"


def test_members_of_groups_and_chains_carry_it(shop: Shop) -> None:
    for _ in range(2):
        made = group([shop.fulfil.s(1).set(durable_id="a"), shop.fulfil.s(2).set(durable_id="b")])()
        assert [result.id for result in made] == ["a", "b"]
        made = chain(shop.fulfil.s(1).set(durable_id="c"), shop.fulfil.s().set(durable_id="d"))()
        assert (made.id, made.parent.id) == ("d", "c")
    assert shop.sent() == ["a", "b", "c"]


def test_the_header_of_a_chord_does_not(shop: Shop) -> None:
    """A chord counts messages; it would wait for ever for one that was sent with an earlier call."""
    members = [shop.fulfil.s(1).set(durable_id="a"), shop.fulfil.s(2)]
    with pytest.raises(ConfigurationError, match="'a': fulfil is in the header of a chord"):
        chord(members)(shop.refund.s())
    assert shop.sent() == []


@everywhere
def test_an_eager_call_is_done_once(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(task_always_eager=True)
    assert shop.fulfil.apply_async(((1, 2),), durable_id="order-1").get() == [[1, 2]]
    assert shop.fulfil.apply_async(([1, 2],), durable_id="order-1").get() == [[1, 2]]
    assert shop.fulfil.apply(([1, 2],), durable_id="order-1").get() == [[1, 2]]
    with pytest.raises(DurableIdConflict, match=r"now   fulfil \(\[3\],\) {}"):
        shop.fulfil.apply(([3],), durable_id="order-1")
    assert shop.ledger.count("fulfil") == 1


def test_an_eager_call_goes_on_where_it_stopped(lab: Lab) -> None:
    trouble: list[BaseException | None] = [None, Crash()]
    op = lab.operation("work", 1, *trouble)
    work = lab.task("work", lambda task: [task.durable.step("a", op), task.durable.step("b", op)])
    with pytest.raises(Crash):
        work.apply(durable_id="order-1")
    assert work.apply(durable_id="order-1").get() == [1, 1]
    assert lab.ledger.count("work") == 3


def test_links_carry_it(shop: Shop) -> None:
    """Also those that were made from a name, and know nothing of task ids."""
    links = [shop.fulfil.s().set(durable_id="a"), shop.app.signature("refund").set(durable_id="b")]
    for _ in range(2):
        assert shop.job.apply(task_id="one", link=links).state == "SUCCESS"
    assert shop.sent() == ["a", "b"]


def call_both(shop: Shop, *calls: tuple[int, str]) -> None:
    with outbox_batch():
        for number, id_ in calls:
            shop.fulfil.apply_async((number,), durable_id=id_)


@everywhere
def test_a_batch_records_all_or_nothing(shop: Shop) -> None:
    shop.fulfil.apply_async((1,), durable_id="a")
    call_both(shop, (1, "a"), (2, "b"), (2, "b"), (3, "c"))
    assert shop.sent() == ["a", "b", "c"]
    for number, id_ in ((2, "a"), (5, "d")):
        with pytest.raises(DurableIdConflict):
            call_both(shop, (4, "d"), (number, id_))
    assert {row.id for row in shop.operations.find()} == {"a", "b", "c"}
    assert shop.sent() == ["a", "b", "c"]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durable_id", "message"),
    [
        ("", "is empty"),
        ("a" * 256, "has 256 characters; there is room for 255"),
        ("a\0b", r"contains '\\x00'"),
        ("a\n", r"contains '\\n'"),
        (" a", "begins or ends with a blank"),
        ("a\ud800", r"contains '\\ud800'"),
        (42, "= 42 is of type int; it must be text"),
    ],
)
def test_what_cannot_be_an_id_is_refused(shop: Shop, durable_id: Any, message: str) -> None:
    for call in (shop.fulfil.apply_async, shop.fulfil.apply, shop.fulfil.s().set):
        with pytest.raises(ConfigurationError, match=f"durable_id.* {message}"):
            call(durable_id=durable_id)
    assert shop.sent() == []


def test_a_long_id_of_any_script_is_an_id(shop: Shop) -> None:
    name = "订单" * 127 + "é"
    assert shop.fulfil.apply_async((1,), durable_id=name).id == name
    assert shop.fulfil.apply_async((1,), durable_id=name).id == name
    assert shop.sent() == [name]


def test_two_ids_for_one_call_are_refused(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="durable_id is 'a' and task_id is 'b'"):
        shop.fulfil.apply_async((1,), durable_id="a", task_id="b")


def plain_function(word: str) -> str:
    return word


def test_a_task_that_is_not_durable_has_none(shop: Shop) -> None:
    plain = shop.app.task(plain_function, name="plain", shared=False)
    shop.app.finalize()
    with pytest.raises(ConfigurationError, match="plain is not a durable task"):
        plain.apply_async(("x",), durable_id="a")
    with pytest.raises(ConfigurationError, match="does not know task elsewhere"):
        shop.app.send_task("elsewhere", task_id="a", durable_id="a")
    assert shop.sent() == []


def test_arguments_that_cannot_be_compared_are_refused(shop: Shop) -> None:
    with pytest.raises(FingerprintError, match="argument 'what' of task 'fulfil' has no canonical form"):
        shop.fulfil.apply_async(kwargs={"what": threading.Event}, serializer="pickle", durable_id="a")
    assert shop.sent() == []
