"""What Celery sends to a pool's parent of an exception: the user's frames, and hardly any of the library's.

It copies every frame, and more than the pipe takes would make a pool process wait for its parent.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery.app.trace import build_tracer

from celery_durable import AmbiguousEffect
from celery_durable.execution.frames import without_ours
from tests.support.lab import Lab

from .test_told import USUAL

#: What a pipe takes before somebody reads, less what an exception's text may need.
MOST = 60_000


def leave(lab: Lab, task: Any) -> Any:
    """What Celery sends of the exception by which a body was left."""
    tracer = build_tracer(task.name, task, app=lab.app)
    request = {**USUAL, "id": task.name, "task": task.name, "args": (), "kwargs": {}}
    return tracer(task.name, (), {}, request)[0]


def frames(sent: Any) -> list[tuple[str, str]]:
    """Module and function of each frame."""
    found, trace = [], sent.tb
    while trace is not None:
        frame = trace.tb_frame
        found.append((frame.f_globals.get("__name__", "?"), frame.f_code.co_name))
        trace = trace.tb_next
    return found


def broken() -> None:
    raise LookupError("not there")


def fails(task: Any) -> None:
    task.durable.step("look", broken)


def fails_alone(task: Any) -> None:
    broken()


def retries(task: Any) -> None:
    raise task.retry(countdown=3600)


def retries_because(task: Any) -> None:
    try:
        task.durable.step("look", broken)
    except LookupError as error:
        raise task.retry(exc=error, countdown=3600) from error


@pytest.mark.parametrize("body", [fails, fails_alone, retries, retries_because])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (LookupError,), "max_retries": 3}], ids=["plain", "auto"])
def test_an_exception_brings_only_the_frames_of_the_user(
    lab: Lab, body: Callable[[Any], None], options: dict[str, Any]
):
    name = body.__code__.co_name
    sent = leave(lab, lab.task(f"{name}{len(options)}", body, **options))
    ours = [function for module, function in frames(sent) if module.startswith("celery_durable")]
    assert set(ours) <= {"__call__", "retry"}
    assert len(ours) <= 2
    assert len(pickle.dumps((1, sent, 0.0))) < MOST
    # And that is what a reader of the log or of AsyncResult.traceback finds.
    if not (options and body in (fails, fails_alone)):  # there Celery leaves it out itself
        assert f"in {name}" in sent.traceback
    assert "celery_durable/execution/session.py" not in sent.traceback


def test_a_mistake_of_the_librarys_own_still_says_where():
    ours: dict[str, Any] = {"__name__": "celery_durable.somewhere"}
    exec("def wrong(error, behind=None):\n    raise error from behind", ours)

    def left(error: Exception, behind: Exception | None = None) -> list[str]:
        with pytest.raises(type(error)) as caught:
            ours["wrong"](error, behind)
        without_ours(caught.value)
        names = []
        trace = caught.value.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        return names

    assert left(AssertionError("a mistake"))[-1] == "wrong"
    assert "wrong" not in left(AmbiguousEffect("said on purpose"))
    # Chains may have a loop.
    first, second = ValueError("first"), ValueError("second")
    first.__context__ = second
    assert left(second, first)[-1] == "wrong"
