"""The route of a message that is sent again: to where it came from, or where it was first sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["route_of", "route_to"]

#: Exchanges of Celery's native delayed delivery on RabbitMQ, through which a message passes until it is due.
_DELAYING: Final = re.compile(r"^(.*_)?celery_delayed_(\d+|delivery)$")
#: The last of these exchanges. Messages that are published there are due.
_DELIVERY: Final = "celery_delayed_delivery"
#: The delay in such a message's routing key: 28 bits, before the key of its queue.
_DELAY: Final = re.compile(r"^(?:[01]\.){28}")


def route_of(app: Celery, request: Any) -> dict[str, str]:
    """Where the running request came from, as options of publishing."""
    info = request.delivery_info or {}
    return route_to(app, info.get("exchange"), info.get("routing_key"), None)


def route_to(app: Celery, exchange: str | None, routing_key: str | None, queue: str | None) -> dict[str, str]:
    """The route of a message, as options of publishing, without a delay: it has passed, or is kept elsewhere."""
    if exchange and routing_key:
        # Celery publishes by these two; if a queue is given too, perhaps the default one, it is only declared.
        delaying = _DELAYING.match(exchange)
        if delaying is None:
            return {"exchange": exchange, "routing_key": routing_key}
        return _without_delay(app, delaying[1] or "", _DELAY.sub("", routing_key, count=1))
    if queue:
        return {"queue": queue}
    if not exchange and routing_key:
        return {"queue": routing_key}  # the anonymous exchange routes by queue name
    return {}  # by the application's own routes, when it is sent


def _without_delay(app: Celery, prefix: str, routing_key: str) -> dict[str, str]:
    """The route of a delayed message: it carries its original routing key, but not its original exchange."""
    ways: set[tuple[str, str]] = set()
    for queue in app.amqp.queues.values():
        bound: Any
        for bound in (queue, *(queue.bindings or ())):
            if bound.routing_key == routing_key and bound.exchange is not None and bound.exchange.name:
                ways.add((bound.exchange.name, bound.routing_key))
    if len(ways) == 1:
        [(exchange, key)] = ways
        return {"exchange": exchange, "routing_key": key}
    # This process does not know the queue, but every queue is bound to the last of the delaying exchanges too.
    return {"exchange": f"{prefix}{_DELIVERY}", "routing_key": routing_key}
