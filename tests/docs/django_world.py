"""What the page on Django needs: settings, a database in a file, and a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from celery import Celery
from django.conf import settings
from django.db import connection, connections, models, transaction

from celery_durable import close
from celery_durable.runtime import runtime
from celery_durable.settings import load
from celery_durable.store import Operations, migrations

if not settings.configured:
    settings.configure(DATABASES={}, USE_TZ=True)
    django.setup()


class Order(models.Model):
    number = models.IntegerField(unique=True)
    decided = models.BooleanField(default=False)

    class Meta:
        app_label = "docs"


_before: list[Any] = []


def begin() -> None:
    """Let Django's default database be a file of this page's own, and the journal be there."""
    _before[:] = [runtime.load]
    runtime.load = load
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path("django.sqlite3").resolve())}
    connections.databases["default"] = connections.configure_settings({"default": database})["default"]
    with contextlib.suppress(AttributeError):
        del connections["default"]
    with connection.schema_editor() as editor:
        editor.create_model(Order)


def app(made: Celery, page: dict[str, Any]) -> Celery:
    """The page's application, with the page's settings; its tasks run eagerly."""
    for name in [name for name in page if name.startswith("CELERY_")]:
        setattr(settings, name, page[name])
        _before.append(name)
    made.conf.update(task_always_eager=True, task_eager_propagates=True)
    assert load(made).database_url == f"sqlite:///{Path('django.sqlite3').resolve()}"
    assert load(made).outbox_using == "default"
    migrations.upgrade(load(made).database_url)
    _before.append(made)
    return made


def order_model() -> Any:
    return Order


def check_decide(decide: Callable[..., None], base: Any) -> None:
    """A promise that the page's view keeps, or does not."""
    [*_, made] = _before

    def ask(task: Any) -> list[str]:
        promise = task.durable.promise("approval")
        return [promise.id, promise.token]

    asked = made.task(ask, base=base, bind=True, name="ask")
    promise, token = asked.apply(task_id="asks").get()
    operations = Operations(runtime.Runtime.of(made).database, namespace="shop")
    [pk] = [row.pk for row in operations.find() if row.id == "asks"]

    def state() -> str:
        [found] = runtime.Runtime.of(made).promises.of([pk])
        return found.state.name

    with contextlib.suppress(LookupError), transaction.atomic():
        decide(1, promise, token, True)
        raise LookupError
    assert (state(), Order.objects.get(number=1).decided) == ("PENDING", False)
    decide(1, promise, token, True)
    assert (state(), Order.objects.get(number=1).decided) == ("RESOLVED", True)


def end() -> None:
    load_before, *names, made = _before
    close(made)
    runtime.load = load_before
    for name in names:
        delattr(settings, name)
    connection.close()
    del connections["default"]
    del connections.databases["default"]
