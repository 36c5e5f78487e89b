"""Canvas around tasks that wait, in all their forms: with true results, once, on both brokers."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature

from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis", "rabbitmq"), pytest.mark.databases("mysql")]


def task(arena: Arena, name: str, *args: Any, id: str | None = None) -> Signature[Any]:  # noqa: A002
    options = {"task_id": id} if id else {}
    return arena.client.signature(f"{APP}.{name}", args, app=arena.client, **options)


def settled(arena: Arena) -> None:
    """Nothing is left to be delivered, where one can look; and nobody listens for results any more."""
    if arena.broker.kind == "redis":
        arena.await_empty_broker()
    gc.collect()


def test_every_form_gives_its_result_once(arena: Arena) -> None:
    arena.worker(concurrency=2)
    results = {
        "async members of a chain": (chain(task(arena, "add_later", 1), task(arena, "add_later", 2)), 3),
        "async members and body of a chord": (
            chord([task(arena, "add_later", 1), task(arena, "add", 2)], task(arena, "total_later")),
            3,
        ),
        "a retry between two sleeps": (chain(task(arena, "try_again", 5), task(arena, "add", 1)), 6),
        "a retry in a chord": (chord([task(arena, "try_again", 5), task(arena, "add", 1)], task(arena, "total")), 6),
        "others in its place": (chain(task(arena, "hand_over", 1), task(arena, "add", 1)), 4),
        "others in the place of a member": (
            chord([task(arena, "hand_over", 1), task(arena, "add", 1)], task(arena, "total")),
            4,
        ),
        "a chord that waits for somebody": (
            chord([task(arena, "approve", id="asks"), task(arena, "add", 1)], task(arena, "total")),
            8,
        ),
        "a group behind a chord": (
            chain(
                chord([task(arena, "add", 1), task(arena, "add", 1)], task(arena, "total")),
                group(task(arena, "add", 1), task(arena, "add_later", 2)),
                task(arena, "total_later"),
            ),
            7,
        ),
    }
    sent = {name: signature.apply_async() for name, (signature, _) in results.items()}
    arena.keep("asks", 7)
    assert {name: result.get(timeout=90) for name, result in sent.items()} == {
        name: expected for name, (_, expected) in results.items()
    }
    rows = arena.operations.find(limit=100)
    arena.await_settled([row.id for row in rows])
    settled(arena)
    # Each step once.
    after = [entry["execution"] for entry in arena.ledger.entries("after")]
    assert len(after) == len(set(after))
    assert len(arena.ledger.entries("before")) == len({e["execution"] for e in arena.ledger.entries("before")}) == 5


def test_what_fails_after_a_wait_is_told_once(arena: Arena) -> None:
    arena.worker(concurrency=2)
    news = task(arena, "bad_news")
    failing = {
        "alone": task(arena, "fail_later", id="alone").on_error(news),
        "in a chain": chain(
            task(arena, "add", 1), task(arena, "fail_later", id="in-chain"), task(arena, "add", 9)
        ).on_error(news),
        "in a chord": chord(
            [task(arena, "fail_later", id="in-chord"), task(arena, "add", 1)], task(arena, "total").on_error(news)
        ),
    }
    for name, signature in failing.items():
        with pytest.raises(Exception, match="too late"):
            signature.apply_async().get(timeout=60)
        assert arena.ledger.count("bad news") <= 3, name
    eventually(lambda: arena.ledger.count("bad news") == 3)
    arena.await_settled(["alone", "in-chain", "in-chord"])
    settled(arena)
    assert arena.ledger.count("bad news") == 3
    assert [len(arena.fired(one, "after")) for one in ("alone", "in-chain", "in-chord")] == [1, 1, 1]
    # What would have come after it never ran.
    assert arena.ledger.count("after") == 5
