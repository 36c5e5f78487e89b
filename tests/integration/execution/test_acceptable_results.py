"""Journal and Celery say the same of an execution whose result Celery's serializer refuses."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import chain
from celery.contrib.testing.worker import start_worker
from pydantic import BaseModel

import celery_durable
from celery_durable import DurableContext, PayloadError, State, StepDescriptor
from tests.support.lab import Lab
from tests.support.wait import eventually


class Receipt(BaseModel):
    """Stored by the journal, refused by JSON."""

    id: int


@dataclass
class Line:
    """Likewise."""

    receipt: Receipt


class Works(Lab):
    """With a worker in this process, and a result backend."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        usual = {"task_default_queue": f"accept-{secrets.token_hex(6)}"}
        super().__init__(*args, **{**usual, **settings})
        self.next = self.task("next", lambda task, value: self.ledger.fire("next"))


@pytest.fixture
def works(make_lab: Callable[..., Any], tmp_path: Path) -> Iterator[Works]:
    made: Works = make_lab(Works, result_backend=f"file://{tmp_path}")
    with start_worker(made.app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        yield made


REFUSED = [
    (lambda: Receipt(id=3), r"\$ is a '[\w.]*Receipt'"),
    (lambda: {"lines": [1, {"receipt": Receipt(id=3)}]}, r"\$\.lines\[1\]\.receipt is a '[\w.]*Receipt'"),
    (lambda: [Line(Receipt(id=1))], r"\$\[0\]\.receipt is a '[\w.]*Receipt'"),
]


def test_what_celery_refuses_is_a_failure_for_both(works: Works) -> None:
    for number, (value, said) in enumerate(REFUSED):
        works._body = lambda ctx, value=value: value()
        result = works.job.apply_async(durable_id=f"number-{number}")
        with pytest.raises(PayloadError, match=f"{said}, which result_serializer = 'json' refuses"):
            result.get(timeout=60)
        handle = celery_durable.get(f"number-{number}", app=works.app)
        assert handle.status().state is State.FAILED
        with pytest.raises(PayloadError, match=said):
            handle.result(timeout=60)


def test_what_celery_takes_or_nobody_reads_is_completed_for_both(works: Works) -> None:
    taken: list[Any] = [{"a": [1, "x"]}, None, (1, 2), 7, Decimal("9.99")]
    for number, value in enumerate(taken):
        works._body = lambda ctx, value=value: value
        told = works.job.apply_async(durable_id=f"number-{number}").get(timeout=60)
        assert told == (list(value) if isinstance(value, tuple) else value)
        assert works.state(f"number-{number}") is State.COMPLETED
    works._body = lambda ctx: Receipt(id=3)
    works.job.apply_async(durable_id="unread", ignore_result=True)
    assert celery_durable.get("unread", app=works.app).result(timeout=60) == Receipt(id=3)


def test_a_chain_takes_what_its_next_task_can_be_sent(works: Works) -> None:
    works._body = lambda ctx: Receipt(id=3)
    chain(works.job.si().set(durable_id="one", ignore_result=True), works.next.s()).apply_async()
    with pytest.raises(PayloadError, match="which task_serializer = 'json' refuses"):
        celery_durable.get("one", app=works.app).result(timeout=60)
    # Who does not want the value is called whatever it is.
    chain(works.job.si().set(durable_id="two", ignore_result=True), works.next.si(1)).apply_async()
    assert celery_durable.get("two", app=works.app).result(timeout=60) == Receipt(id=3)
    eventually(lambda: works.ledger.count("next") == 1)


def test_another_serializer_takes_more(make_lab: Callable[..., Any], tmp_path: Path) -> None:
    pickles = {"result_serializer": "pickle", "accept_content": ["json", "pickle"]}
    works: Works = make_lab(Works, result_backend=f"file://{tmp_path}", **pickles)
    with start_worker(works.app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        works._body = lambda ctx: Receipt(id=3)
        assert works.job.apply_async(task_id="one").get(timeout=60) == Receipt(id=3)
    assert works.state() is State.COMPLETED


def test_in_a_test_without_a_worker_nothing_is_stored(lab: Lab) -> None:
    assert lab.run(lambda ctx: Receipt(id=3)) == Receipt(id=3)


def test_what_the_body_did_is_undone_before_it_fails(works: Works) -> None:
    """What Celery refuses, and what the journal itself does."""
    hotel = StepDescriptor("hotel", compensate=lambda room: works.ledger.fire("cancel hotel"))
    for number, value in enumerate([Receipt(id=3), object()]):

        def body(ctx: DurableContext, value: Any = value) -> Any:
            ctx.step(hotel, works.operation("hotel", "room"))
            return value

        works._body = body
        with pytest.raises(PayloadError):
            works.job.apply_async(durable_id=f"number-{number}").get(timeout=60)
        assert works.ledger.names() == ["hotel", "cancel hotel"] * (number + 1)
        assert works.state(f"number-{number}") is State.FAILED
