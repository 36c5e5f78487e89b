"""A process that a body forks owns nothing: neither the lease, nor the right to write."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from celery_durable import DurableContext, State
from tests.support.databases import JournalDatabase
from tests.support.lab import Lab


def leave() -> None:
    raise SystemExit(7)


def fail() -> None:
    raise ValueError("in the fork")


def finish() -> None:
    """Returns, and with it the body."""


@pytest.mark.parametrize(("how", "status"), [(leave, 7), (fail, 1), (finish, 0)])
def test_however_a_fork_leaves_the_body_the_execution_is_its_parents(
    database: JournalDatabase, lab: Lab, how: Callable[[], None], status: int
) -> None:
    second = lab.operation("second", 2)

    def body(ctx: DurableContext) -> int:
        ctx.step("first", lambda: 1)
        pid = os.fork()
        if pid == 0:
            how()
            return -1
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
        return ctx.step("second", second)

    assert lab.run(body) == 2
    assert (lab.state(), lab.execution().attempts) == (State.COMPLETED, 0)
    assert [line for line in lab.entries() if "RESULT" in line] == ["0 RESULT first", "1 RESULT second"]
    assert lab.ledger.count("second") == 1


def test_a_step_in_a_fork_is_refused_and_takes_nobodys_place(database: JournalDatabase, lab: Lab) -> None:
    step = lab.operation("step", "value")

    def body(ctx: DurableContext) -> str:
        pid = os.fork()
        if pid == 0:
            try:
                ctx.step("step", lambda: "the fork's")
                ctx._run.flush()
            except BaseException as error:
                os._exit(3 if type(error).__name__ == "LeaseLost" else 4)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        return ctx.step("step", step)

    assert lab.run(body) == "value"
    assert lab.state() is State.COMPLETED
