"""A message as it is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kombu import serialization

from celery_durable.codec import Codec
from celery_durable.messaging.envelope import build, own_body, pack, unpack

BODY = [["Zoë \N{ROCKET}"], {"key": {"__durable__": 1}}, {"callbacks": None}]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_body_comes_back_as_it_was_sent(serializer: str):
    content_type, encoding, data = serialization.dumps(BODY, serializer=serializer)
    raw = data if isinstance(data, bytes) else data.encode()
    codec = Codec("json", 1 << 20)
    stored = pack(build({"id": "1", "task": "t"}, {}, (content_type, encoding, raw), serializer, None, {}), codec)
    envelope = unpack(stored, codec)
    assert own_body(envelope) == BODY
    body: Any = envelope["body"]
    assert (body.encode(encoding) if isinstance(body, str) else body) == raw


def test_text_is_stored_as_text():
    """It is what nearly all messages are, and one that bytes would make ten times dearer."""
    content_type, encoding, data = serialization.dumps([["order-42"], {}, {}], serializer="json")
    stored = pack(
        build({"id": "1", "task": "t"}, {}, (content_type, encoding, data.encode()), "json", None, {}),
        Codec("json", 999),
    )
    assert json.loads(json.loads(stored.data)["body"]) == [["order-42"], {}, {}]


def test_what_only_claims_to_be_text_is_kept_as_bytes():
    codec = Codec("json", 999)
    envelope = build({"id": "1", "task": "t"}, {}, ("application/x-odd", "utf-8", b"\xff\x00"), None, None, {})
    assert unpack(pack(envelope, codec), codec)["body"] == b"\xff\x00"


def test_a_header_that_is_no_proper_text_is_kept():
    """Half of a surrogate pair, which no UTF-8 has."""
    codec = Codec("json", 1 << 20)
    stored = pack(
        build({"id": "1", "task": "t", "odd": "\ud800"}, {}, ("application/json", "utf-8", b"[]"), "json", None, {}),
        codec,
    )
    assert unpack(stored, codec)["headers"] == {"id": "1", "task": "t", "odd": "\ud800"}
