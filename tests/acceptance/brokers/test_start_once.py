"""Calls with a chosen id, and reruns, whose processes are killed, doubled and outlived by nothing but the journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import celery_durable
from celery_durable.common.faults import FAULT_VARIABLE
from celery_durable.store.records import State
from tests.support.conf import conf_env
from tests.support.gates import GATES
from tests.support.wait import eventually

from .arena import LEASE, Arena
from .caller import CONFLICT

pytestmark = pytest.mark.brokers("redis")


def start(arena: Arena, *args: str, killed_at: str = "") -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        **arena.ledger.env,
        **conf_env(arena.broker.conf, arena.database.conf, {"durable_lease_timeout": LEASE}),
        FAULT_VARIABLE: f"{killed_at}=kill" if killed_at else "",
        GATES: str(arena._gates),
    }
    return subprocess.Popen([sys.executable, "-m", "tests.acceptance.brokers.caller", *args], env=env)


def call(arena: Arena, *args: str, killed_at: str = "") -> None:
    """Let a process of its own do it."""
    assert start(arena, *args, killed_at=killed_at).wait(60) == (-signal.SIGKILL if killed_at else 0)


def waiting(arena: Arena) -> int:
    """How many messages the broker has."""
    with arena.broker.connect() as connection:
        return int(connection.default_channel.client.llen(arena.broker.queue))


def result(arena: Arena, execution: str) -> Any:
    """What a process without a worker gets to know, from the journal alone."""
    eventually(lambda: any(row.id == execution for row in arena.operations.find(limit=100)), 60)
    return celery_durable.get(execution, arena.publisher(result_backend="disabled://")).result(timeout=60)


@pytest.mark.databases("sqlite", "mysql")
def test_a_caller_that_dies_between_the_record_and_the_message(arena: Arena) -> None:
    call(arena, "add", "order-1", "1", killed_at="outbox.after_record")
    assert (arena.row("order-1").state, waiting(arena)) == (State.PENDING, 0)
    # Whoever calls again need not send it: that is for recovery to do.
    call(arena, "add", "order-1", "1")
    assert waiting(arena) == 0
    arena.worker()
    assert result(arena, "order-1") == 2
    arena.expect_once(["order-1"], "work")


@pytest.mark.databases("postgresql")
def test_a_caller_that_dies_before_the_record(arena: Arena) -> None:
    call(arena, "add", "order-1", "1", killed_at="outbox.before_record")
    assert arena.operations.find() == []
    call(arena, "add", "order-1", "1")
    assert waiting(arena) == 1
    arena.broker.flush()
    arena.worker()
    assert result(arena, "order-1") == 2
    arena.expect_once(["order-1"], "work")


def test_callers_in_several_processes_at_the_same_time(arena: Arena) -> None:
    numbers = ("1", "1", "1", "2")
    callers = [start(arena, "race", "order-1", number) for number in numbers]
    try:
        eventually(lambda: arena.ledger.count("caller") == len(numbers), 60)
    finally:
        arena.open_gate("race")
        codes = [caller.wait(60) for caller in callers]
    # Those of the other call are refused, whichever that is.
    assert codes in ([0, 0, 0, CONFLICT], [CONFLICT, CONFLICT, CONFLICT, 0])
    assert waiting(arena) == 1
    arena.worker()
    assert result(arena, "order-1") == (2 if codes[0] == 0 else 3)
    arena.expect_once(["order-1"], "work")


@pytest.mark.databases("sqlite")
def test_a_chain_whose_worker_dies_when_it_has_sent_the_next_one(arena: Arena) -> None:
    """The outcome is handed on once more, and the next member, whose id was chosen, is not sent again."""
    for execution in ("first", "second"):
        arena.arm(execution, "task.returned")
    call(arena, "chain")
    call(arena, "chain")
    arena.worker()
    assert [result(arena, one) for one in ("first", "second", "third")] == [3, 8, 3]
    arena.expect_once(["first", "second", "third"], "work")
    assert arena.unreached() == []


@pytest.mark.databases("postgresql", "mysql")
@pytest.mark.parametrize("killed_at", ["rerun.before_commit", "rerun.after_record"])
def test_a_rerun_whose_caller_dies(arena: Arena, killed_at: str) -> None:
    arena.open_gate("release")
    arena.worker()
    call(arena, "held", "old")
    assert result(arena, "old") == "released"
    call(arena, "rerun", "old", "after", "new", killed_at=killed_at)
    recorded = {"old"} if killed_at == "rerun.before_commit" else {"old", "new"}
    assert {row.id for row in arena.operations.find()} == recorded
    call(arena, "rerun", "old", "after", "new")
    assert result(arena, "new") == "released"
    arena.expect_once(["old"], "work", "after")
    arena.expect_once(["new"], "after")
    assert arena.ledger.count("work") == 1
