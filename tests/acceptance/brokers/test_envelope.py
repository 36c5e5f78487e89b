"""What recovery sends again is the message that came, in everything that a body or a broker can see of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from celery import chain

from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis", "rabbitmq"), pytest.mark.databases("sqlite")]

ACCEPT = {"accept_content": ["json", "pickle"]}


@pytest.fixture(autouse=True)
def may_unpickle_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")


def sees_the_same_twice(arena: Arena, execution: str, queue: str, **conf: Any) -> dict[str, Any]:
    """Let the first owner die, the broker forget the message, and another owner take over.

    :returns: what both have seen.
    """
    options = {"conf": {**ACCEPT, **conf}, "queues": [arena.broker.queue, queue], "concurrency": 1}
    first = arena.worker(**options)
    eventually(lambda: arena.ledger.count("mirror", execution=execution) == 1)
    # A body is recorded a moment after it has begun; until then the broker alone knows of it.
    arena.await_started([execution])
    first.crash()
    arena.broker.flush()
    arena.worker(**options)
    eventually(lambda: arena.ledger.count("mirror", execution=execution) == 2, 60)
    arena.open_gate("release")
    arena.await_settled([execution])
    before, after = (entry["seen"] for entry in arena.ledger.entries("mirror", execution=execution))
    # A started execution does not expire any more.
    assert after.pop("expires") == "None"
    expires = before.pop("expires")
    assert after == before
    assert arena.ledger.count("work", execution=execution) == 1
    return {**before, "expires": expires}


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_options_and_headers(arena: Arena, serializer: str):
    other = arena.broker.another_queue("other")
    expires = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)
    arena.client.conf.update(ACCEPT)
    arena.client.send_task(
        f"{APP}.mirror",
        (1, "two"),
        {"three": [3]},
        task_id="mirror-1",
        queue=other,
        priority=7,
        serializer=serializer,
        compression="zlib",
        expires=expires,
        headers={"tenant-name": "acme", "nested": {"a": [1]}},
        time_limit=500,
        soft_time_limit=400,
        shadow="a shadow",
        ignore_result=True,
        delivery_mode="transient",
        root_id="a-root",
        parent_id="a-parent",
    )
    seen = sees_the_same_twice(arena, "mirror-1", other)
    assert seen["routing_key"] == other
    assert seen["priority"] == 7
    assert seen["content_type"] == {"json": "application/json", "pickle": "application/x-python-serialize"}[serializer]
    assert seen["shadow"] == "'a shadow'"
    assert seen["timelimit"] == "[500, 400]"
    assert (seen["root_id"], seen["parent_id"]) == ("'a-root'", "'a-parent'")
    assert seen["ignore_result"] == "True"
    assert "'tenant-name': 'acme'" in seen["headers"]
    assert seen["expires"] != "None"
    assert eval(seen["args"]) in ([1, "two"], (1, "two"))
    assert seen["kwargs"] == "{'three': [3]}"


def test_canvas_and_stamps(arena: Arena):
    mirror = arena.client.signature(f"{APP}.mirror", (1,), task_id="mirror-1")
    after = arena.client.signature(f"{APP}.add", (10,), task_id="add-1")
    told = arena.client.signature(f"{APP}.add", (20,), task_id="add-2")
    work = chain(mirror, after)
    work.link(told)
    work.stamp(tenant="acme")
    work.apply_async()
    seen = sees_the_same_twice(arena, "mirror-1", arena.broker.queue)
    assert seen["stamped_headers"] == "['tenant']"
    assert "acme" in seen["stamps"]
    assert "add-1" in seen["chain"]
    arena.expect_once(["add-1", "add-2"], "work")
    assert [eventually(lambda one=one: arena.result(one).result, 60) for one in ("add-1", "add-2")] == [11, 31]
