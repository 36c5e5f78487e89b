"""Messages of Celery's protocol 1, as other programs still send them, are stored in the form in which they came."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker.strategy import proto1_to_proto2
from kombu import serialization
from kombu.message import Message

from celery_durable import DurableTask
from celery_durable.messaging.envelope import from_request
from celery_durable.worker.request import DurableRequest

ARGS = (("a", 1), ["b", {"c": None}], "ü")


def read(envelope: Any) -> Any:
    return serialization.loads(
        envelope["body"], envelope["content_type"], envelope["content_encoding"], accept={envelope["content_type"]}
    )


def stored(serializer: str, args: Any) -> Any:
    """What is stored of such a message."""
    app = Celery("old", set_as_current=False, broker="memory://")

    @app.task(base=DurableTask, name="work", shared=False)
    def work(*args: Any, **kwargs: Any) -> None: ...

    content_type, encoding, data = serialization.dumps(
        {"task": "work", "id": "one", "args": args, "kwargs": {"pair": (1, 2)}, "retries": 0}, serializer=serializer
    )
    message = Message(
        data,
        content_type=content_type,
        content_encoding=encoding,
        delivery_info={"exchange": "", "routing_key": "celery", "redelivered": False},
        accept={content_type},
    )
    body, headers, decoded, utc = proto1_to_proto2(message, message.payload)
    assert decoded
    request = DurableRequest(message, app=app, task=work, body=body, headers=headers, decoded=decoded, utc=utc)
    received = Context(request.request_dict, args=body[0], kwargs=body[1], called_directly=False)
    return from_request(work, received)


def test_pickled_tuples_come_back_as_tuples():
    envelope = stored("pickle", ARGS)
    args, kwargs, embed = read(envelope)
    assert (args, kwargs) == (ARGS, {"pair": (1, 2)})
    assert type(args[0]) is type(kwargs["pair"]) is tuple
    assert embed["chain"] is None
    assert envelope["serializer"] == "pickle"


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_other_serializers_give_what_they_gave_first(serializer: str):
    args, kwargs, _ = read(stored(serializer, ARGS))
    content_type, encoding, data = serialization.dumps(ARGS, serializer=serializer)
    assert list(args) == list(serialization.loads(data, content_type, encoding, accept={content_type}))
    assert list(kwargs["pair"]) == [1, 2]
