"""The decorator ``@durable_task``: what it declares is what ``app.task(base=DurableTask)`` declares."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, chain, shared_task

import celery_durable
from celery_durable import ConfigurationError, DurableContext, DurableTask, durable_task


def new_app(name: str = "declared") -> Celery:
    app = Celery(name, set_as_current=False)
    app.conf.update(durable_database_url="sqlite://", task_always_eager=True)
    return app


@pytest.fixture
def app() -> Iterator[Celery]:
    app = new_app()
    yield app
    celery_durable.close(app)


@pytest.fixture(autouse=True)
def unshared() -> Iterator[None]:
    """A task is of every application that there is, and that will be, unless it says ``shared=False``."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


def test_a_body_runs_durably_and_resumes_after_an_automatic_retry(app: Celery) -> None:
    loads, tries = [], []

    def load(order_id: int) -> str:
        loads.append(order_id)
        return f"order {order_id}"

    @durable_task(app, bind=True, name="fulfil", autoretry_for=(OSError,), retry_backoff=False, default_retry_delay=0)
    def fulfil(self: DurableTask, order_id: int, *, express: bool = False) -> str:
        order = self.durable.step("load", load, order_id)
        tries.append(self.durable.attempt)
        if len(tries) < 3:
            raise OSError("not yet")
        return f"{order}, {express}"

    assert fulfil.delay(7, express=True).get() == "order 7, True"
    assert (loads, len(tries)) == ([7], 3)
    assert celery_durable.get(fulfil.apply((8,), task_id="eight").id, app).result() == "order 8, False"


@pytest.mark.parametrize("bind", [False, True])
def test_every_option_reaches_celery(app: Celery, bind: bool) -> None:
    options: dict[str, Any] = {
        "name": "named",
        "max_retries": 7,
        "ignore_result": True,
        "autoretry_for": (OSError,),
        "retry_backoff": 5,
        "rate_limit": "10/m",
        "own": "a word of the user's",
    }

    def body(*args: Any) -> int:
        return len(args)

    with_ours, with_celerys = new_app("ours"), new_app("celerys")
    durable_task(with_ours, bind=bind, shared=False, **options)(body)
    with_celerys.task(base=DurableTask, bind=bind, shared=False, **options)(body)
    ours, theirs = with_ours.tasks["named"], with_celerys.tasks["named"]
    assert type(ours).__mro__[1:] == type(theirs).__mro__[1:]
    assert vars(type(ours)).keys() == vars(type(theirs)).keys()
    for name in {*options, "acks_late", "reject_on_worker_lost"}:
        assert getattr(ours, name, None) == getattr(theirs, name, None), name
    assert (ours.max_retries, ours.rate_limit, ours.own) == (7, "10/m", "a word of the user's")
    assert ours(1) == theirs(1) == 1 + bind


def test_its_name_is_that_of_the_function(app: Celery) -> None:
    @durable_task(app)
    def ship(order_id: int) -> int:
        """How it is done."""
        return order_id

    assert ship.name == f"{__name__}.ship"
    assert ship.__doc__ == "How it is done."
    assert list(inspect.signature(ship.run).parameters) == ["order_id"]
    assert ship.name in app.tasks


def test_an_async_body(app: Celery) -> None:
    @durable_task(app, bind=True)
    async def later(self: DurableTask, number: int) -> float:
        return self.durable.step("halve", lambda: number / 2)

    assert later.delay(3).get() == 1.5
    assert asyncio.run(later(3)) == 1.5


def test_signatures_join_a_canvas(app: Celery) -> None:
    @durable_task(app, name="ship")
    def ship(order_id: int) -> str:
        return f"parcel {order_id}"

    @durable_task(app, name="tell")
    def tell(parcel: str, name: str) -> str:
        return f"{name}: {parcel}"

    assert chain(ship.s(1), tell.s("Ada")).delay().get() == "Ada: parcel 1"
    assert ship.s(1).set(durable_id="order-1").options["task_id"] == "order-1"


def test_a_base_of_ones_own(app: Celery) -> None:
    class Ours(DurableTask):
        abstract = True

        def greeting(self) -> str:
            return f"this is {self.name}"

    @durable_task(app, bind=True, base=Ours, name="greet")
    def greet(self: Ours, name: str) -> str:
        return f"{self.greeting()}, {name}"

    assert isinstance(app.tasks["greet"], Ours)
    assert greet.delay("Ada").get() == "this is greet, Ada"


def test_without_an_application_it_is_of_every_one() -> None:
    @durable_task
    def bare() -> DurableContext | str:
        return "bare"

    @durable_task(bind=True, name="shared.bound", max_retries=1)
    def bound(self: DurableTask, number: int) -> tuple[str, int]:
        return self.name, self.durable.step("double", lambda: number * 2)

    @shared_task(base=DurableTask, name="shared.celerys")
    def celerys() -> None: ...

    for app in (new_app("one"), new_app("other")):
        app.finalize()
        assert {f"{__name__}.bare", "shared.bound", "shared.celerys"} <= set(app.tasks)
        assert all(isinstance(app.tasks[name], DurableTask) for name in (f"{__name__}.bare", "shared.bound"))
        assert app.tasks["shared.bound"].delay(2).get() == ("shared.bound", 4)
        assert app.tasks["shared.bound"].max_retries == 1
        with app.connection_for_write():
            app.set_current()
            assert bare.name == f"{__name__}.bare"
            assert bound.app is app
        celery_durable.close(app)


@pytest.mark.parametrize("base", [Task, int, "DurableTask", None])
def test_a_base_that_is_not_durable_is_refused(app: Celery, base: Any) -> None:
    with pytest.raises(ConfigurationError, match="a subclass of DurableTask"):
        durable_task(app, base=base)


@pytest.mark.parametrize("wrong", ["shop", 3, Celery])
def test_what_is_no_application_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Write @durable_task\(app, ...\)"):
        durable_task(wrong)
