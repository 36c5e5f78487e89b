"""A Celery message as it is stored, so that it can be sent again.

Headers, body and route are kept as they were, so that chains, chords, groups, links, priority and serializer survive,
and a process that does not know the task can send it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from celery.app.amqp import task_message
from kombu import serialization
from kombu.serialization import prepare_accept_content

from .capture import repeat
from .codec import Codec
from .store.records import StoredPayload

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = [
    "CHILD_HEADER",
    "PK_HEADER",
    "RAW_KEY",
    "RERUN_HEADER",
    "WAITS_HEADER",
    "accepted_body",
    "body_of",
    "build",
    "from_message",
    "from_request",
    "pack",
    "resend",
    "route_of",
    "unpack",
]

#: Carries the primary key of an execution whose row was written at publish.
PK_HEADER: Final = "durable_pk"
#: Counts how often a message has been postponed because the journal could not be reached.
WAITS_HEADER: Final = "durable_waits"
#: On the message of a rerun: the id of the execution that it repeats.
RERUN_HEADER: Final = "durable_rerun_of"

#: On every message of a child task: the promise that its end keeps.
CHILD_HEADER: Final = "durable_child"

#: Under which a request carries its message's content type, encoding and body, as they came from the broker.
RAW_KEY: Final = "durable_raw"

#: Headers of Celery's message protocol 2.
_PROTOCOL: Final = (
    "lang",
    "task",
    "id",
    "shadow",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
)
#: What a broker or one sending adds to a message, and what would be wrong on a new one.
_FOREIGN: Final = frozenset(
    {
        *("eta", PK_HEADER, WAITS_HEADER),
        *("redelivered", "x-death", "x-first-death-exchange", "x-first-death-queue"),
    }
)
#: Message properties worth keeping. An expiration is relative to the first send, and a started execution does
#: not expire.
_PROPERTIES: Final = ("correlation_id", "reply_to", "priority", "delivery_mode")
_WHERE: Final = "a stored message"


def from_request(task: Task[Any, Any], request: Any) -> dict[str, Any]:
    """The message that the running request came with."""
    known = request.__dict__
    headers = {name: known[name] for name in _PROTOCOL if name in known}
    headers.update((request.headers or {}).items())
    for stamp in request.stamped_headers or ():
        if stamp in known:
            headers[stamp] = known[stamp]
    given = request.properties or {}
    info = request.delivery_info or {}
    properties = {name: given[name] for name in _PROPERTIES if given.get(name) is not None}
    if info.get("priority") is not None:
        properties["priority"] = info["priority"]
    raw = known.get(RAW_KEY)
    if raw is None:
        embed = {
            "callbacks": request.callbacks,
            "errbacks": request.errbacks,
            "chain": request.chain,
            "chord": request.chord,
        }
        # As they are: a serializer may tell tuples from lists.
        body = (request.args or (), request.kwargs or {}, embed)
        raw, serializer = serialization.dumps(body, serializer=task.serializer), task.serializer
    else:
        serializer = _serializer_of(raw[0]) or task.serializer
    return build(
        headers,
        properties,
        raw,
        serializer,
        getattr(task, "compression", None),
        _route(info.get("exchange"), info.get("routing_key"), None),
    )


def from_message(message: Any, options: Mapping[str, Any], app: Celery) -> dict[str, Any]:
    """The message that is about to be published; ``options`` are those of ``send_task_message``."""
    headers = {**message.headers, **(options.get("headers") or {})}
    merged = {**message.properties, **options}
    properties = {name: merged[name] for name in _PROPERTIES if merged.get(name) is not None}
    exchange, queue = options.get("exchange"), options.get("queue")
    serializer = options.get("serializer") or app.conf.task_serializer
    envelope = build(
        headers,
        properties,
        serialization.dumps(message.body, serializer=serializer),
        serializer,
        options.get("compression"),
        _route(getattr(exchange, "name", exchange), options.get("routing_key"), getattr(queue, "name", queue)),
    )
    if headers.get("eta"):
        envelope["eta"] = headers["eta"]
    return envelope


def build(
    headers: dict[str, Any],
    properties: dict[str, Any],
    body: tuple[str, str, Any],
    serializer: str | None,
    compression: str | None,
    route: Mapping[str, str],
) -> dict[str, Any]:
    """An envelope of these parts.

    :param body: content type, encoding and data.
    """
    content_type, encoding, data = body
    if type(data) is bytes and encoding == "utf-8":
        # What is text is stored as text: that costs a tenth of what bytes cost, and an operator can read it.
        with contextlib.suppress(UnicodeDecodeError):
            data = data.decode()
    return {
        "headers": {k: v for k, v in headers.items() if k not in _FOREIGN},
        "properties": properties,
        "body": data,
        "content_type": content_type,
        "content_encoding": encoding,
        "serializer": serializer,
        "compression": compression,
        "route": dict(route),
    }


_PLAIN: Final = frozenset({str, int, bool, float, bytes, type(None)})


def _plain(value: Any) -> Any:
    """Headers of some transports come in subclasses of the plain types, which the codec refuses."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    plain: Any
    for plain in (bool, int, float, str, bytes):
        if isinstance(value, plain):
            return plain(value)
    return value


def _route(exchange: str | None, routing_key: str | None, queue: str | None) -> dict[str, str]:
    if exchange and not exchange.startswith("celery_delayed") and routing_key:
        # Celery publishes by these two; a queue beside them, the default one perhaps, is only declared.
        return {"exchange": exchange, "routing_key": routing_key}
    if queue:
        return {"queue": queue}
    if not exchange and routing_key:
        return {"queue": routing_key}  # the anonymous exchange routes by queue name
    return {}  # by the application's own routes, when it is sent


def route_of(request: Any) -> dict[str, str]:
    """Where the running request came from, as options of publishing."""
    info = request.delivery_info or {}
    return _route(info.get("exchange"), info.get("routing_key"), None)


def _serializer_of(content_type: str | None) -> str | None:
    """The name under which Kombu knows a content type."""
    if not content_type:
        return None
    name: str | None = serialization.registry.type_to_name.get(content_type)  # type: ignore[attr-defined]
    return name


def pack(envelope: Mapping[str, Any], codec: Codec) -> StoredPayload:
    """An envelope as stored bytes."""
    try:
        simple = codec.encode_json(envelope)
    except (TypeError, ValueError, RecursionError):
        simple = None
    if simple is None:
        headers, properties = _plain(envelope["headers"]), _plain(envelope["properties"])
        simple = codec.encode({**envelope, "headers": headers, "properties": properties}, _WHERE)
    return StoredPayload(*simple)


def unpack(stored: StoredPayload, codec: Codec) -> dict[str, Any]:
    """An envelope from stored bytes."""
    envelope: dict[str, Any] = codec.decode(stored.codec, stored.data, _WHERE)
    return envelope


def body_of(envelope: Mapping[str, Any], accept: Iterable[str] | None = None) -> Any:
    """``(args, kwargs, embed)`` of an envelope.

    :param accept: content types that may be decoded; default: the envelope's own.
    """
    return serialization.loads(
        envelope["body"],
        envelope["content_type"],
        envelope["content_encoding"],
        accept=set(accept) if accept is not None else {envelope["content_type"]},
    )


def accepted_body(app: Celery, envelope: Mapping[str, Any]) -> Any:
    """``(args, kwargs, embed)`` of an envelope, where the application accepts its serializer: others may run code.

    :raises kombu.exceptions.ContentDisallowed: where it does not.
    """
    return body_of(envelope, prepare_accept_content(app.conf.accept_content))


def resend(
    app: Celery,
    envelope: Mapping[str, Any],
    pk: int | None,
    *,
    producer: Any,
    eta: dt.datetime | None = None,
    started: bool = True,
    **how: Any,
) -> None:
    """Publish a stored message again.

    :param pk: the primary key of its execution, where there is a row.
    :param eta: when it is to run, aware; None: at once.
    :param started: the execution has run before, so that the message does not expire any more.
    :param how: options of publishing, such as ``retry_policy``.
    :raises kombu.exceptions.OperationalError: when the broker cannot be reached.
    """
    headers = {**envelope["headers"], "eta": eta.isoformat() if eta is not None else None}
    if started:
        headers["expires"] = None
    else:
        headers["eta"] = headers["eta"] or envelope.get("eta")
        repeat(app, envelope.get("before", []))
    if pk is not None:
        headers[PK_HEADER] = str(pk)
    properties = dict(envelope["properties"])
    options: dict[str, Any] = {}
    if "delivery_mode" in properties:
        options["delivery_mode"] = properties.pop("delivery_mode")
    try:
        body = body_of(envelope)
        options["serializer"] = envelope["serializer"]
    except Exception:
        # This process lacks the classes that the body needs; the bytes are good as they are.
        body = envelope["body"]
        properties |= {"content_type": envelope["content_type"], "content_encoding": envelope["content_encoding"]}
    if envelope["compression"]:
        options["compression"] = envelope["compression"]
    route = dict(envelope["route"]) or dict(app.amqp.router.route({}, headers["task"], (), {}))
    sender = app.amqp.send_task_message
    sender = getattr(sender, "past_outbox", sender)
    sender(producer, headers["task"], task_message(headers, properties, body, None), **route, **options, **how)
