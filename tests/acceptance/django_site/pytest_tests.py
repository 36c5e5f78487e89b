"""The project's tests in pytest's style, which a test of ours runs with pytest-django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker

import celery_durable
from celery_durable.runtime import Runtime

from .celery import app
from .shop import tasks
from .shop.models import Order
from .shop.tests import recorded


@pytest.fixture(autouse=True)
def nothing_charged() -> None:
    tasks.charged.clear()


def test_without_a_database() -> None:
    assert tasks.ticket.delay(5).get() == tasks.ticket.delay(5).get()
    assert tasks.charged == [5]
    assert Runtime.of(app).database.in_memory


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.django_db
def test_in_a_transaction(again: bool) -> None:
    assert recorded() == 0
    Order.objects.create(number=1)
    assert tasks.fulfil.apply_async((1,), durable_id="order-1").get() == [True, True, "receipt of 1"]
    assert celery_durable.get("order-1").status().state == "completed"
    assert tasks.charged == [1]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.django_db(transaction=True)
def test_on_its_own(again: bool) -> None:
    assert recorded() == 0
    Order.objects.create(number=1)
    assert tasks.fulfil.apply_async((1,), durable_id="order-1").get() == [True, True, "receipt of 1"]
    assert tasks.charged == [1]


@pytest.mark.django_db
def test_messages_of_a_transaction(django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        tasks.ordering.delay(8)
        assert tasks.charged == []
    assert tasks.charged == [8]


@pytest.mark.django_db(transaction=True)
def test_a_worker_in_a_thread(worker_in_a_thread: None) -> None:
    Order.objects.create(number=3)
    assert tasks.fulfil.delay(3).get(timeout=60) == [True, True, "receipt of 3"]
    assert tasks.asynchronous.delay(30).get(timeout=60) == [30, 31, "receipt of 30"]
    assert recorded() == 2
    assert tasks.charged == [3, 30]


@pytest.fixture
def worker_in_a_thread() -> Iterator[None]:
    app.conf.task_always_eager = False
    try:
        with start_worker(app, pool="solo", perform_ping_check=False):
            yield
    finally:
        app.conf.task_always_eager = True
