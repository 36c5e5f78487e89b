"""A Celery message as it is stored, so that it can be sent again.

Headers, body and route are kept as they were, so that chains, chords, groups, links, priority and serializer survive,
and a process that does not know the task can send it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from celery.app.amqp import task_message
from kombu import serialization

from celery_durable.codec import Codec
from celery_durable.codec.refusal import corrupted
from celery_durable.codec.serialized import load
from celery_durable.runtime.accepting import of_messages
from celery_durable.store.records import StoredPayload

from .backend_calls import repeat
from .routing import route_of, route_to

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = [
    "CHILD_HEADER",
    "PK_HEADER",
    "RAW_KEY",
    "RERUN_HEADER",
    "WAITS_HEADER",
    "accepted_body",
    "build",
    "from_message",
    "from_request",
    "own_body",
    "pack",
    "resend",
    "serializer_of",
    "unpack",
]

#: Carries the primary key of an execution whose row was written at publish.
PK_HEADER: Final = "durable_pk"
#: Counts how often a message has been postponed because the journal could not be reached.
WAITS_HEADER: Final = "durable_waits"
#: On the message of a rerun: the id of the execution that it repeats.
RERUN_HEADER: Final = "durable_rerun_of"

#: On every message of a child task: the promise that its end settles.
CHILD_HEADER: Final = "durable_child"

#: Key under which a request carries its message's content type, encoding and body, as they came from the broker.
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
#: Headers that a broker or a single sending adds to a message, and that would be wrong on a new one.
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
        # Not converted: a serializer may tell tuples from lists.
        body = (request.args or (), request.kwargs or {}, embed)
        raw, serializer = serialization.dumps(body, serializer=task.serializer), task.serializer
    else:
        serializer = serializer_of(raw[0]) or task.serializer
    return build(
        headers,
        properties,
        raw,
        serializer,
        getattr(task, "compression", None),
        route_of(task.app, request),
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
        route_to(app, getattr(exchange, "name", exchange), options.get("routing_key"), getattr(queue, "name", queue)),
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
        # Text is stored as text: this costs a tenth of what bytes cost, and an operator can read it.
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
    """A header as a plain type: some transports give subclasses, which the codec refuses."""
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


def serializer_of(content_type: str | None) -> str | None:
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
    """An envelope from stored bytes.

    :raises PayloadError: when it cannot be read here, or is no envelope.
    """
    envelope: dict[str, Any] = codec.decode(stored.codec, stored.data, _WHERE)
    wrong = _wrong_with(envelope)
    if wrong:
        raise corrupted(_WHERE, wrong)
    return envelope


_OPTIONAL: Final = (str, type(None))
#: The parts of an envelope: see :func:`build`.
_PARTS: Final[dict[str, type | tuple[type, ...]]] = {
    "headers": dict,
    "properties": dict,
    "body": (str, bytes),
    "content_type": str,
    "content_encoding": str,
    "serializer": _OPTIONAL,
    "compression": _OPTIONAL,
    "route": dict,
}
_ROUTE: Final = frozenset({"exchange", "routing_key", "queue"})


def _wrong_with(envelope: Any) -> str | None:
    """Why something is no envelope. Its parts become arguments of publishing: those who can write to the database must
    not be able to add any others.
    """
    if type(envelope) is not dict:
        return "it is not a message"
    for name, kinds in _PARTS.items():
        if not isinstance(envelope.get(name), kinds):
            return f"its {name} is missing, or of the wrong type"
    headers = envelope["headers"]
    if not all(isinstance(headers.get(name), str) for name in ("id", "task")):
        return "it names no task"
    if not (_ROUTE.issuperset(envelope["route"]) and all(type(v) is str for v in envelope["route"].values())):
        return "its route is malformed"
    if not set(_PROPERTIES).issuperset(envelope["properties"]):
        return "it has unknown properties"
    before = envelope.get("before", [])
    if type(before) is not list or not all(type(call) is list and call for call in before):
        return "its calls of the result backend are malformed"
    return None


def own_body(envelope: Mapping[str, Any]) -> Any:
    """``(args, kwargs, embed)`` of an envelope that this process has just built from its own message."""
    content_type = envelope["content_type"]
    return serialization.loads(envelope["body"], content_type, envelope["content_encoding"], accept={content_type})


def accepted_body(app: Celery, envelope: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """``(args, kwargs, embed)`` of a stored envelope, if the application accepts its serializer: reading others might
    run code.

    :raises PayloadError: if it does not accept it, or the body cannot be read here.
    """
    accept = of_messages(app)
    body = load(
        envelope["body"], envelope["content_type"], envelope["content_encoding"], accept, "the body of a stored message"
    )
    if not isinstance(body, (list, tuple)) or len(body) != 3:
        raise corrupted(_WHERE, "its body is malformed")
    args, kwargs, embed = body
    if not (isinstance(args, (list, tuple)) and isinstance(kwargs, dict) and isinstance(embed, (dict, type(None)))):
        raise corrupted(_WHERE, "its body does not hold arguments")
    return args, kwargs, embed or {}


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
    """Publish a stored message again; its body is not decoded.

    :param pk: the primary key of its execution, where there is a row.
    :param eta: when it is to run, aware; None: at once.
    :param started: the execution has run before, so its message no longer expires.
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
    # The bytes are passed on unread: the process that runs the task reads them, or refuses to.
    body = envelope["body"]
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    properties |= {"content_type": envelope["content_type"], "content_encoding": envelope["content_encoding"]}
    if envelope["compression"]:
        options["compression"] = envelope["compression"]
    route = dict(envelope["route"]) or dict(app.amqp.router.route({}, headers["task"], (), {}))
    sender = app.amqp.send_task_message
    sender = getattr(sender, "past_outbox", sender)
    sender(producer, headers["task"], task_message(headers, properties, body, None), **route, **options, **how)
