"""Where a message is sent again: also one that RabbitMQ has delayed on its way, which says so in its route."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue, binding

from celery_durable import DurableTask
from celery_durable.messaging.envelope import from_message
from celery_durable.messaging.routing import route_of, route_to

#: Five seconds, before the key of a queue.
BITS = ".".join(f"{5:028b}")


class Request:
    def __init__(self, exchange: str, routing_key: str) -> None:
        self.delivery_info = {"exchange": exchange, "routing_key": routing_key}


@pytest.fixture
def app() -> Celery:
    app = Celery("routes", set_as_current=False, broker="memory://")
    topic = Exchange("shop", type="topic")
    app.conf.task_queues = [
        Queue("orders", topic, routing_key="shop.orders"),
        Queue("mail", bindings=[binding(topic, routing_key="shop.mail")]),
        Queue("left", Exchange("left", type="topic"), routing_key="both"),
        Queue("right", Exchange("right", type="topic"), routing_key="both"),
    ]
    return app


@pytest.mark.parametrize(
    ("exchange", "key", "expected"),
    [
        ("", "celery", {"queue": "celery"}),
        ("shop", "shop.orders", {"exchange": "shop", "routing_key": "shop.orders"}),
        # An exchange of somebody's own, whatever it is called, and a key that only looks delayed.
        ("celery_delayed_things", "a", {"exchange": "celery_delayed_things", "routing_key": "a"}),
        ("shop", f"{BITS}.a", {"exchange": "shop", "routing_key": f"{BITS}.a"}),
        # Delayed on its way to a queue that is known here...
        ("celery_delayed_27", f"{BITS}.shop.orders", {"exchange": "shop", "routing_key": "shop.orders"}),
        ("celery_delayed_0", f"{BITS}.shop.mail", {"exchange": "shop", "routing_key": "shop.mail"}),
        ("eu_celery_delayed_3", f"{BITS}.shop.orders", {"exchange": "shop", "routing_key": "shop.orders"}),
        # ... and to one that is not, or not by this alone: where all delays end.
        ("celery_delayed_2", f"{BITS}.there", {"exchange": "celery_delayed_delivery", "routing_key": "there"}),
        ("celery_delayed_2", f"{BITS}.both", {"exchange": "celery_delayed_delivery", "routing_key": "both"}),
        ("eu_celery_delayed_2", f"{BITS}.there", {"exchange": "eu_celery_delayed_delivery", "routing_key": "there"}),
        # What has been sent so once comes from there.
        ("celery_delayed_delivery", "there", {"exchange": "celery_delayed_delivery", "routing_key": "there"}),
    ],
)
def test_a_delivery_says_where_it_came_from(app: Celery, exchange: str, key: str, expected: dict[str, str]):
    assert route_of(app, Request(exchange, key)) == expected


def test_what_is_about_to_be_delayed_keeps_its_goal(app: Celery):
    @app.task(base=DurableTask, name="work", shared=False)
    def work() -> None: ...

    message: Any = app.amqp.as_task_v2("one", "work", (), {}, countdown=5)
    options = {"exchange": Exchange("celery_delayed_27", type="topic"), "routing_key": f"{BITS}.shop.orders"}
    stored = from_message(message, options, app)
    assert stored["route"] == {"exchange": "shop", "routing_key": "shop.orders"}
    assert stored["eta"] == message.headers["eta"]


def test_a_queue_stands_for_itself(app: Celery):
    assert route_to(app, None, "anything", "orders") == {"queue": "orders"}
    assert route_to(app, None, None, None) == {}
