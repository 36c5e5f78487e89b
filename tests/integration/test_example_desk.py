"""The example's front desk: a page whose buttons keep and break promises of bodies that wait."""

from __future__ import annotations

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import celery_durable
from celery_durable import DurableContext, PromiseRejected
from example_project.clients import Desk as DeskClient
from example_project.clients import ServiceRefused
from example_project.demo.observer import read_books
from example_project.demo.people import Forms
from example_project.services.desk import Desk
from example_project.services.service import Server
from tests.support.delivery import Delivery
from tests.support.lab import Lab

pytestmark = [pytest.mark.databases("sqlite"), pytest.mark.usefixtures("database")]

#: A name that tries to be markup.
TEXT = '2 × kettle for <b onclick="">Bobby</b>'


@pytest.fixture
def url(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Desk, "app", lab.app)
    server = Server(Desk(tmp_path / "desk.db"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()
    server.service.ledger.close()


class Order:
    """A body that asks at the front desk and waits for the answer."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, ctx: DurableContext) -> Any:
        approval = ctx.promise("approval")
        self.promise = approval
        ctx.step("ask", DeskClient(self.url).ask, "approval", "order-1", TEXT, approval.id, approval.token)
        try:
            return f"approved by {ctx.wait(approval)}"
        except PromiseRejected as refusal:
            return refusal.reason


@pytest.fixture
def order(url: str, deliver: Delivery) -> Order:
    body = Order(url)
    deliver.suspends(body)
    return body


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return str(reply.read().decode())


def press(url: str, answer: str, /, **changes: str) -> str | int:
    """Press a button below the only question; the page that follows, or the status of an error."""
    [form] = Forms(page(url)).found
    data = urllib.parse.urlencode({**form, "answer": answer, **changes}).encode()
    try:
        with urllib.request.urlopen(f"{url}/answers", data, timeout=5) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def answers(url: str) -> list[str | None]:
    return [entry["answer"] for entry in read_books(url).entries]


@pytest.mark.parametrize(
    ("answer", "result"), [("yes", "approved by the front desk"), ("no", "refused at the front desk")]
)
def test_a_button_lets_the_order_go_on(url: str, order: Order, deliver: Delivery, answer: str, result: str) -> None:
    assert answers(url) == [None]
    after = press(url, answer)
    assert isinstance(after, str)
    assert "1 answered so far" in after
    assert Forms(after).found == []
    assert answers(url) == [answer]
    assert deliver(order) == result


def test_the_page_shows_text_as_text_and_the_ledger_no_token(url: str, order: Order) -> None:
    shown = page(url)
    assert "&lt;b onclick=&quot;&quot;&gt;Bobby" in shown
    assert "<b" not in shown.replace("<body", "").replace("<button", "")
    assert order.promise.token in shown
    assert all(order.promise.token not in str(entry) for entry in read_books(url).entries)


def test_a_question_that_is_asked_again_is_there_once(url: str, order: Order) -> None:
    promise = order.promise
    DeskClient(url).ask("approval", "order-1", TEXT, promise.id, promise.token)
    assert len(Forms(page(url)).found) == 1
    assert read_books(url).requests == {"asked": 1, "asked before": 1}


@pytest.mark.parametrize(("changes", "status"), [({"token": "guessed"}, 403), ({"answer": "perhaps"}, 400)])
def test_what_is_no_answer_changes_nothing(
    url: str,
    order: Order,
    deliver: Delivery,
    changes: dict[str, str],
    status: int,
) -> None:
    assert press(url, "yes", **changes) == status
    assert answers(url) == [None]
    assert deliver.due() == []


def test_a_question_that_was_settled_elsewhere_leaves_the_page(url: str, order: Order, lab: Lab) -> None:
    celery_durable.resolve(order.promise.id, order.promise.token, "the owner's wife", app=lab.app)
    assert press(url, "no") == 409
    assert Forms(page(url)).found == []
    assert answers(url) == ["settled elsewhere"]


def test_only_known_kinds_are_asked(url: str) -> None:
    with pytest.raises(ServiceRefused, match="approval, payment"):
        DeskClient(url).ask("riddle", "order-1", "?", "p", "t")
