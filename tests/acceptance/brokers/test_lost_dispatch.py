"""A whole worker is lost after an outcome was committed and before Celery knew of it: callbacks, the next link of a
chain and the parts of a chord are still to be sent.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord
from celery.canvas import Signature

from tests.support.wait import eventually

from .arena import APP, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("postgresql")]

#: Those that lose their worker at the same moment.
ROUNDS = (("first", "refused"), ("left", "right"), ("sum",), ("last",))
#: Who is told of it, by links and errbacks.
TOLD = ("told-1", "told-2", "complaint")
#: A callback that was received and not begun would otherwise wait for the visibility timeout of Redis.
OUTBOX = {"durable_outbox": True}


def test_every_callback_is_sent_once_by_the_next_worker(arena: Arena):
    def sign(task: str, execution: str, *args: Any) -> Signature[Any]:
        return arena.client.signature(f"{APP}.{task}", args, task_id=execution)

    stopped = [execution for together in ROUNDS for execution in together]
    for execution in stopped:
        arena.arm(execution, "task.after_outcome", action="stop")
    last = sign("add", "last", 100)
    last.link(sign("add", "told-1", 1000))
    last.link(sign("add", "told-2", 2000))
    middle = chord([sign("add", "left", 10), sign("add", "right", 20)], sign("total", "sum"))
    result = chain(sign("add", "first", 1, 1), middle, last).apply_async()
    sign("refuse", "refused").on_error(sign("complain", "complaint")).apply_async()

    worker = arena.worker(concurrency=3, conf=OUTBOX)
    for together in ROUNDS:
        eventually(lambda now=together: not any(arena.unreached(one) for one in now), 60)
        # Their outcomes are committed, and the processes that were to tell Celery stand still.
        assert {arena.row(one).state.value for one in together} <= {"completed", "failed"}
        if together == ROUNDS[1]:
            arena.await_settled(["complaint"])  # told by the second worker; killed in its step, it would be in doubt
        worker.crash()
        worker = arena.worker(concurrency=3, conf=OUTBOX)

    everybody = [*stopped, *TOLD]
    arena.await_settled(everybody)
    assert result.get(timeout=60) == (2 + 10) + (2 + 20) + 100
    assert [eventually(lambda one=one: arena.result(one).result, 60) for one in TOLD[:2]] == [1134, 2134]
    assert arena.result("refused").state == "FAILURE"
    assert {one: arena.ledger.count("work", execution=one) for one in everybody} == dict.fromkeys(everybody, 1)
    assert {row.id for row in arena.operations.find(limit=100)} == set(everybody)
