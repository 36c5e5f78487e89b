"""``durable_on_unavailable = "degrade"`` is for what has certainly never run: anything else waits for its journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Ignore

from celery_durable import JournalUnavailable
from celery_durable.runtime import Runtime
from tests.support.delivery import FIRST, hand_over
from tests.support.lab import Lab

DELAYED = [{"queue": "celery_delayed_1", "reason": "expired", "count": 1}]


@pytest.fixture
def cut_off(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab without its journal, on a broker that marks what it delivers again."""
    lab = make_lab(durable_on_unavailable="degrade")
    runtime = Runtime.of(lab.app)

    def unreachable(*_: Any) -> None:
        raise JournalUnavailable("the journal is away.")

    monkeypatch.setattr(runtime.ownership, "open", unreachable)
    monkeypatch.setattr(runtime, "marks_redelivery", True)
    lab._body = lambda context: lab.ledger.fire("body")
    waiting(lab)  # what other tests of this process have left in the broker's memory
    return lab


def waiting(lab: Lab) -> int:
    """How many messages wait in the broker."""
    with lab.app.connection_for_read() as connection:
        queue = connection.default_channel.queue_declare("celery", passive=False)
        number = int(queue.message_count)
        connection.default_channel.queue_purge("celery")
    return number


def test_a_first_delivery_runs(cut_off: Lab):
    hand_over(cut_off.job, "one", **FIRST)
    assert (cut_off.ledger.count("body"), waiting(cut_off)) == (1, 0)


def test_a_first_delivery_that_rabbitmq_has_put_off_runs(cut_off: Lab):
    hand_over(cut_off.job, "one", **FIRST, **{"x-death": DELAYED})
    assert (cut_off.ledger.count("body"), waiting(cut_off)) == (1, 0)


@pytest.mark.parametrize(
    "sign",
    [
        {"retries": 1},
        {"replaced_task_nesting": 1},
        {"delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": True}},
        # Brokers that say nothing of it.
        {"delivery_info": {"exchange": "", "routing_key": "celery"}},
        {"redelivered": True},
        {"durable_pk": "17"},
        {"durable_waits": "1"},
        {"durable_rerun_of": "another"},
        {"durable_child": "promise"},
        # A header of a version to come.
        {"durable_epoch": "2"},
        {"x-death": [*DELAYED, {"queue": "celery", "reason": "rejected", "count": 1}]},
        # The worker's main process did not see it come.
        {"durable_raw": None},
    ],
    ids=lambda sign: "-".join(f"{name}" for name in sign),
)
def test_what_may_have_run_before_comes_back(cut_off: Lab, sign: dict[str, Any]):
    request = {name: value for name, value in (FIRST | sign).items() if value is not None}
    with pytest.raises(Ignore):
        hand_over(cut_off.job, "one", **request)
    assert (cut_off.ledger.count("body"), waiting(cut_off)) == (0, 1)


def test_so_does_anything_on_a_broker_whose_marks_are_no_proof(cut_off: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    runtime = Runtime.of(cut_off.app)
    assert not runtime.marks_redelivery  # memory

    def unreachable(*_: Any) -> None:
        raise JournalUnavailable("the journal is away.")

    monkeypatch.setattr(runtime.ownership, "open", unreachable)
    with pytest.raises(Ignore):
        hand_over(cut_off.job, "one", **FIRST)
    assert (cut_off.ledger.count("body"), waiting(cut_off)) == (0, 1)


def test_an_eager_call_is_refused(cut_off: Lab):
    """Its id may be that of an execution that broke off."""
    with pytest.raises(JournalUnavailable, match="the journal is away"):
        cut_off.run(lambda context: cut_off.ledger.fire("body"))
    assert cut_off.ledger.count("body") == 0


@pytest.mark.parametrize(
    ("settings", "marks"),
    [
        ({"broker_url": "redis://127.0.0.1:1/0"}, True),
        ({"broker_url": "amqp://127.0.0.1:1"}, True),
        ({"broker_url": "memory://"}, False),
        ({"broker_url": "filesystem://"}, False),
        ({"broker_url": "redis://127.0.0.1:1/0", "broker_transport_options": {"ack_emulation": False}}, False),
    ],
)
def test_whose_marks_are_a_proof(make_lab: Callable[..., Lab], settings: dict[str, Any], marks: bool):
    assert Runtime.of(make_lab(**settings).app).marks_redelivery is marks
