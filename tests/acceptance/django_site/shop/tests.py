"""The project's tests, which a test of ours runs."""

from __future__ import annotations

import contextlib

from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase

import celery_durable
from celery_durable.runtime import Runtime
from celery_durable.store.tables import executions

from ..celery import app
from . import tasks
from .models import Order


def recorded() -> int:
    """How many executions the journal holds."""
    import sqlalchemy as sa

    database = Runtime.of(app).database
    return int(database.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(executions)).scalar_one()))


class Without(SimpleTestCase):
    """Touches no database at all: neither does the journal."""

    def test_a_body(self) -> None:
        receipt = tasks.charge.operation(1)
        self.assertEqual(receipt, "receipt of 1")
        self.assertEqual(tasks.ticket.delay(5).get(), tasks.ticket.delay(5).get())
        self.assertTrue(Runtime.of(app).database.in_memory)


class Cases:
    """What holds in every kind of test."""

    def setUp(self) -> None:
        tasks.charged.clear()
        tasks.undone.clear()
        tasks.approve.clear()

    def test_a_database_of_the_test_s_own(self) -> None:
        assert recorded() == 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM durable_execution")

    def test_steps_of_every_kind(self) -> None:
        Order.objects.create(number=1)
        assert tasks.fulfil.delay(1).get() == [True, True, "receipt of 1"]
        assert Order.objects.get(number=1).note == "noted"
        assert Order.objects.filter(number=1001).exists()
        assert recorded() == 1

    def test_an_id_is_used_in_every_test_anew(self) -> None:
        once = tasks.fulfil.apply_async((2,), durable_id="order-2")
        assert celery_durable.get("order-2").status().state == "completed"
        assert [s.name for s in celery_durable.get("order-2").steps()][:3] == ["look", "create_order", "charge"]
        assert once.get() == [False, True, "receipt of 2"]
        assert tasks.charged == [2]

    test_an_id_is_used_in_every_test_anew_again = test_an_id_is_used_in_every_test_anew

    def test_a_key(self) -> None:
        assert tasks.ticket.delay(3).get() == tasks.ticket.delay(3).get()
        assert tasks.charged == [3]

    test_a_key_again = test_a_key

    def test_a_saga(self) -> None:
        with self.assertRaises(LookupError):
            tasks.saga.delay(4)
        assert (tasks.charged, tasks.undone) == ([4], [4])
        assert Order.objects.filter(number=4).exists()

    def test_branches(self) -> None:
        assert tasks.branches.delay([1, 2, 3]).get() == [f"receipt of {n}" for n in (1, 2, 3)]
        assert sorted(tasks.charged) == [1, 2, 3]
        assert Order.objects.filter(number=3).exists()

    def test_an_async_body(self) -> None:
        assert tasks.asynchronous.delay(5).get() == [5, 6, "receipt of 5"]
        assert Order.objects.filter(number__in=(5, 6)).count() == 2

    def test_a_promise_that_is_kept_while_it_is_made(self) -> None:
        tasks.approve.append(lambda made: celery_durable.resolve(made.promise, made.token, "yes"))
        assert tasks.approval.delay().get() == "yes"

    def test_a_body_that_changed(self) -> None:
        tasks.old_body.append(True)
        try:
            with self.assertRaises(tasks.Killed):
                tasks.changing.apply((7,), task_id="changed")
        finally:
            tasks.old_body.clear()
        assert tasks.changing.apply((7,), task_id="changed").get() == "receipt of 7"
        assert Order.objects.filter(number=7).count() == 1
        assert tasks.charged == [7]


class InATransaction(Cases, TestCase):
    """``TestCase`` rolls back."""

    @classmethod
    def setUpTestData(cls) -> None:
        Order.objects.create(number=999)

    def test_messages_of_a_transaction(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            tasks.ordering.delay(8)
            assert tasks.charged == []
        assert tasks.charged == [8]
        assert Order.objects.filter(number__in=(8, 1008, 999)).count() == 3

    def test_rolled_back_with_a_block_of_the_test_s(self) -> None:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            tasks.ticket.delay(9)
            raise ZeroDivisionError
        assert recorded() == 0


class OnItsOwn(Cases, TransactionTestCase):
    """``TransactionTestCase`` commits, and empties the tables."""

    def test_messages_of_a_transaction(self) -> None:
        tasks.ordering.delay(8)
        assert tasks.charged == [8]
        assert Order.objects.filter(number__in=(8, 1008)).count() == 2
