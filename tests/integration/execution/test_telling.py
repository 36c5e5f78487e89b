"""Whether an execution that has ended must still hand its value on, should its process die now."""

from __future__ import annotations

from typing import Any

import pytest
from celery.signals import task_success

from celery_durable import DurableTask
from celery_durable.store.records import State
from tests.support.delivery import hand_over
from tests.support.lab import Lab, everywhere

pytestmark = everywhere


class Announces(DurableTask):
    abstract = True

    def on_success(self, *_: Any) -> None:
        """A hook of the task's own."""


class LooksBack(DurableTask):
    abstract = True

    def after_return(self, *_: Any) -> None:
        """A hook of the task's own."""


def is_to_be_told(lab: Lab, task: Any = None, **request: Any) -> bool:
    """What the row says of an execution whose last commit is all that its process has got to."""
    hand_over(task or lab.job, "one", **request)
    row = lab.execution()
    assert row.state is State.COMPLETED
    return row.wake_at is not None


def test_nothing_where_nobody_asks_for_its_value(lab: Lab):
    assert not is_to_be_told(lab, ignore_result=True)
    assert not is_to_be_told(lab, lab.task("silent", lambda task: None, ignore_result=True))


def test_a_result(lab: Lab):
    assert is_to_be_told(lab)


@pytest.mark.parametrize("base", [Announces, LooksBack])
def test_a_hook_of_its_task(lab: Lab, base: type[DurableTask]):
    assert is_to_be_told(lab, lab.task("hooked", lambda task: None, base=base), ignore_result=True)


@pytest.mark.parametrize("followed", ["callbacks", "chain", "chord", "group"])
def test_what_follows_it(lab: Lab, followed: str):
    assert is_to_be_told(
        lab, ignore_result=True, **{followed: {"chord": {"task": "sum"}, "group": "id"}.get(followed, [{}])}
    )


def test_a_receiver_of_its_success(lab: Lab):
    def heard(**_: Any) -> None:
        """Somebody listens."""

    task_success.connect(heard)
    try:
        assert is_to_be_told(lab, ignore_result=True)
    finally:
        task_success.disconnect(heard)
