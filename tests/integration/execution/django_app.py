"""A Celery application in a Django project."""

from __future__ import annotations

import os
import signal

from celery import Celery, shared_task
from celery.contrib.django.task import DjangoTask

from celery_durable import DurableTask, Intent, OnAmbiguous, current_step, guarded, step
from tests.support.ledger import Ledger

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")


class ShopTask(DurableTask, DjangoTask):
    abstract = True


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
def charge(order: str) -> None:
    Ledger.from_env().fire("charge", order=order, execution=current_step().execution_id)


@app.task(base=ShopTask, name="fulfil")
def fulfil(order: str) -> str:
    charge(order)
    ledger = Ledger.from_env()
    if not ledger.count("died", order=order):
        ledger.fire("died", order=order)
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.fire("done", order=order)
    return order


@shared_task(base=DurableTask, name="shared")
def shared(order: str) -> str:
    charge(order)
    return order


def publish() -> None:
    """What the views of the project do."""
    import django
    from django.db import transaction

    django.setup()
    with transaction.atomic():
        fulfil.delay_on_commit("rolled back")
        transaction.set_rollback(True)
    with transaction.atomic():
        fulfil.delay_on_commit("committed")
        Ledger.from_env().fire("committing")
        with transaction.atomic():
            fulfil.apply_async_on_commit(("nested",))
    shared.delay("last")


if __name__ == "__main__":
    publish()
