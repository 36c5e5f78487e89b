"""What is generic for type checkers is the class itself when it runs."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.canvas import Signature

from celery_durable import DurableTask, Promise
from celery_durable.messaging.signature import DurableSignature


def test_a_promise_with_a_type_is_a_promise() -> None:
    assert Promise[int] is Promise
    made = Promise[int]("approval", "1" * 32, lambda: "secret")
    assert type(made) is Promise
    kind: Any = Promise[int]
    assert isinstance(made, kind)
    assert not hasattr(made, "__dict__")
    assert (Promise.__module__, Promise[int].__qualname__) == ("celery_durable.waits.promise", "Promise")


def test_a_durable_task_with_types_is_a_durable_task() -> None:
    kind: Any = DurableTask[[int], str]
    assert kind is DurableTask
    app = Celery("generic", set_as_current=False)
    app.conf.update(durable_database_url="sqlite://", task_always_eager=True)

    class Half(DurableTask[[int], float]):
        name = "half"

        def run(self, number: int) -> float:
            return self.durable.step("halve", lambda: number / 2)

    assert Half.__mro__[1] is DurableTask
    half = app.register_task(Half())
    assert half.delay(3).get() == 1.5

    @app.task(base=kind, name="double", shared=False)
    def double(number: int) -> int:
        return number * 2

    assert isinstance(double, kind)
    assert double.delay(3).get() == 6


def test_its_signatures_are_those_of_before() -> None:
    assert issubclass(DurableSignature, Signature)
    app = Celery("generic", set_as_current=False)

    @app.task(base=DurableTask, name="one", shared=False)
    def one(number: int) -> int:
        return number

    signature = one.s(1)
    assert type(signature) is DurableSignature
    assert dict(signature) == {
        "task": "one",
        "args": (1,),
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
