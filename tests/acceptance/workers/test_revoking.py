"""What is revoked or cancelled is not brought back: not by recovery, and not by a message that comes again."""

from __future__ import annotations

import celery
import pytest

from celery_durable.errors import UnknownExecution
from celery_durable.store.records import State
from tests.support.commands import run_process
from tests.support.conf import conf_env
from tests.support.wait import eventually

from .arena import APP, LEASE, Arena

pytestmark = [pytest.mark.brokers("redis"), pytest.mark.databases("sqlite")]


def _expect_cancelled(arena: Arena, execution: str, bodies: int = 1) -> None:
    eventually(lambda: arena.row(execution).state is State.CANCELLED, 60, ignore=(UnknownExecution,))
    assert arena.row(execution).wake_at is None
    assert arena.ledger.count("body", execution=execution) == bodies
    assert arena.fired(execution, "after") == []


def _expect_revoked(arena: Arena, execution: str, bodies: int = 1) -> None:
    _expect_cancelled(arena, execution, bodies)
    eventually(lambda: arena.result(execution).state == "REVOKED", 60)


def test_a_message_that_is_revoked_before_it_starts_never_does(arena: Arena):
    outbox = {"durable_outbox": True, "durable_lease_timeout": LEASE, "durable_recovery_interval": 0.2}
    worker = arena.worker(durable=outbox, conf={"worker_prefetch_multiplier": 4})
    arena.send("first", "held")
    arena.await_body("first")
    arena.send("unknown", "held")
    arena.send("caller", "calls", "recorded")
    for execution in ("unknown", "recorded"):
        arena.revoke(execution, [worker])
    arena.open_gate("release")
    assert arena.result("first").get(timeout=60) == "released"
    # One of them has a row, through the outbox; the other one was known to the broker only.
    _expect_revoked(arena, "recorded", bodies=0)
    eventually(lambda: arena.result("unknown").state == "REVOKED", 60)
    with pytest.raises(UnknownExecution):
        arena.row("unknown")

    arena.outlast_leases(worker, durable=outbox)
    _expect_revoked(arena, "recorded", bodies=0)
    assert arena.ledger.count("body", execution="unknown") == 0


def test_a_retry_that_is_revoked_while_it_waits_does_not_come(arena: Arena):
    worker = arena.worker(conf={"worker_prefetch_multiplier": 4})
    arena.send("retried", "coming_back", 3)
    arena.await_body("retried")
    arena.open_gate("retry")
    eventually(lambda: worker.log().count("coming_back[retried] received") == 2)
    arena.revoke("retried", [worker])
    _expect_revoked(arena, "retried")


def test_revoked_without_terminate_a_body_may_end_but_not_retry(arena: Arena):
    worker = arena.worker(concurrency=2)
    arena.send("ends", "held")
    arena.send("retries", "coming_back", 3600)
    for execution in ("ends", "retries"):
        arena.await_body(execution)
        arena.revoke(execution, [worker])
    arena.open_gate("release")
    arena.open_gate("retry")
    assert arena.result("ends").get(timeout=60) == "released"
    arena.await_settled(["ends"])
    assert arena.row("ends").state is State.COMPLETED
    # Celery may write RETRY over the REVOKED of the message that it has discarded meanwhile.
    _expect_cancelled(arena, "retries")


on_gevent = pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery terminates greenlets since 5.5")


@pytest.mark.parametrize(
    ("pool", "signals"),
    [("prefork", ("SIGTERM", "SIGKILL")), pytest.param("gevent", ("SIGTERM",), marks=on_gevent)],
)
def test_a_terminated_body_is_not_resumed(arena: Arena, pool: str, signals: tuple[str, ...]):
    worker = arena.worker(pool=pool, concurrency=len(signals), conf={"worker_prefetch_multiplier": 4})
    for signal in signals:
        arena.send(signal, "held", "never")
    for signal in signals:
        arena.await_body(signal)
        arena.revoke(signal, [worker], terminate=True, signal=signal)
    for signal in signals:
        _expect_revoked(arena, signal)
    before = [arena.row(signal) for signal in signals]

    # Nor in a worker that has not heard of it, when all leases have run out.
    arena.outlast_leases(worker, pool=pool)
    arena.open_gate("never")
    arena.open_gate("last")
    # Nor by a message that comes again.
    for signal in signals:
        arena.send(signal, "held")
    arena.send("afterwards", "held", "last")
    assert arena.result("afterwards").get(timeout=60) == "released"
    for signal in signals:
        _expect_revoked(arena, signal)
    assert [arena.row(signal) for signal in signals] == before


def test_a_body_that_is_cancelled_by_an_operator_starts_no_further_step(arena: Arena):
    worker = arena.worker()
    arena.send("held-1", "held")
    arena.await_body("held-1")
    env = conf_env(arena.broker.conf, arena.database.conf)
    run_process(APP, "cancel", "held-1", env=env)
    _expect_revoked(arena, "held-1")
    arena.open_gate("release")
    # Its process is free again.
    arena.send("next", "held")
    assert arena.result("next").get(timeout=60) == "released"
    _expect_revoked(arena, "held-1")
    assert worker.alive
