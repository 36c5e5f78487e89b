"""What is wrong with a body reaches whoever waits for its result, whole; the worker lives, and nothing is repeated."""

from __future__ import annotations

import pytest

from .arena import APP, Arena

pytestmark = [pytest.mark.databases("sqlite"), pytest.mark.brokers("redis")]

REBUILT = f"$.a[0] is a '{APP}.Unstorable', which cannot be rebuilt from data."
#: Mistake -> what the exception and its message begin with.
MISTAKES = {
    "argument": "FingerprintError: argument 1 of step 'wrong' has no canonical form to take a fingerprint of: $[0] is "
    f"a '{APP}.Unstorable'. Say what identifies the call with fingerprint=, for example @step(fingerprint=lambda "
    "order: order.id). Leave secrets",
    "result": f"PayloadError: the result of step 'wrong' (position 1) cannot be stored in the journal: {REBUILT}",
    "guarded result": "ResultLost: step 'after' (position 1) of execution guarded result was done, but its result "
    "could not be stored; it is not run again. the result of step 'after' (position 1) cannot be stored in the "
    f"journal: {REBUILT}",
    "size": "PayloadTooLarge: the result of step 'wrong' (position 1) takes 3002 bytes encoded; the limit is 2000 "
    "bytes (setting durable_max_payload_bytes). Store the data elsewhere and pass a reference to it, or raise the "
    "setting.",
    "nested": "NestedStep: step 'inner' was used inside the operation of step 'wrong'. A step cannot contain "
    "steps: call it from the task's body, or call the plain function (.operation of a @step).",
    "return": f"PayloadError: the return value of task '{APP}.mistaken' cannot be stored in the journal: $.value is a "
    f"'{APP}.Unstorable', which cannot be rebuilt from data.",
}


def test_each_mistake_is_told_to_who_waits_and_the_worker_goes_on(arena: Arena) -> None:
    worker = arena.start(concurrency=2, durable={"durable_max_payload_bytes": 2000})
    for mistake in MISTAKES:
        arena.send(mistake, "mistaken", mistake)
    arena.send("none", "mistaken", "none")
    for mistake, told in MISTAKES.items():
        raised = arena.result(mistake).get(timeout=60, propagate=False)
        assert f"{type(raised).__name__}: {raised.args[0]}"[: len(told)] == told
        # Whoever resumes it finds what was done.
        assert arena.row(mistake).state == "failed"
        assert arena.ledger.count("before", execution=mistake) == 1
    assert arena.result("none").get(timeout=60) == "no mistake"
    assert "Unrecoverable" not in worker.log()
