"""``key=`` names a guarded operation for the whole application: whoever asks for it, it is done once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from celery_durable import ConfigurationError, DurableContext, GuardConflict, OnAmbiguous, Retry, current_step
from celery_durable.steps import drive as driver
from celery_durable.store.records import EntryKind, State
from tests.integration.charging import Declined, Timeout, charging
from tests.support.lab import Crash, Lab, everywhere
from tests.support.wait import eventually

ORDER = charging(OnAmbiguous.RERUN, key=lambda order, cents=0: f"order-{order}")


def charging_order(op: Any, *args: Any, step: Any = ORDER) -> Callable[[DurableContext], Any]:
    return lambda ctx: ctx.step(step, op, *args)


@everywhere
def test_two_executions_that_ask_for_the_same_key_fire_it_once(lab: Lab) -> None:
    op = lab.operation("charge", {"receipt": 1})
    assert lab.run(charging_order(op, 7), id="one") == {"receipt": 1}
    assert lab.run(charging_order(op, 7), id="two") == {"receipt": 1}
    assert lab.ledger.count("charge") == 1
    assert lab.entries("two") == ["0 RESULT charge"]


def test_another_key_is_another_operation(lab: Lab) -> None:
    op = lab.operation("charge")
    lab.run(charging_order(op, 7), id="one")
    lab.run(charging_order(op, 8), id="two")
    assert lab.ledger.count("charge") == 2


def test_the_operation_sees_the_same_key_in_every_execution(lab: Lab) -> None:
    keys = []

    def charge(order: int) -> None:
        keys.append(current_step().idempotency_key)
        raise Declined

    declining = charging(OnAmbiguous.RERUN, key="the key")
    for id_ in ("one", "two"):
        with pytest.raises(Declined):
            lab.run(charging_order(charge, 7, step=declining), id=id_)
    assert len(keys) == 2
    assert keys[0] == keys[1]


@everywhere
def test_the_same_key_with_other_arguments_is_an_error(lab: Lab) -> None:
    op = lab.operation("charge")
    lab.run(charging_order(op, 7, 500), id="one")
    with pytest.raises(GuardConflict) as conflict:
        lab.run(charging_order(op, 7, 600), id="two")
    there, here = lab.rows("one")[0].fingerprint, lab.rows("two")
    assert there is not None
    assert (
        str(conflict.value)
        .replace(there[:6].hex(), "THERE")
        .startswith(
            "[CD303] step 'charge' (position 0) asks for a key= that another call has used with other arguments "
            "(fingerprint THERE there, "
        )
    )
    assert str(conflict.value).endswith(
        " here). Nothing was called. A key names one operation: use another key for another one."
    )
    assert here == []
    assert lab.state("two") is State.FAILED
    assert lab.ledger.count("charge") == 1


def test_a_handled_conflict_is_replayed(lab: Lab) -> None:
    op = lab.operation("charge")
    lab.run(charging_order(op, 7, 500), id="one")
    seen: list[str] = []

    def body(ctx: DurableContext) -> None:
        try:
            ctx.step(ORDER, op, 7, 600)
        except GuardConflict as error:
            seen.append(error.message)
        ctx.step("after", lambda: None)
        if len(seen) == 1:
            raise Crash

    lab.crash(body, id="two")
    lab.run(body, id="two")
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert lab.entries("two") == ["0 ERROR charge", "1 RESULT after"]


def test_a_lost_result_is_shared_too(lab: Lab) -> None:
    op = lab.operation("charge", object())
    for id_ in ("one", "two"):
        with pytest.raises(Exception, match=f"step 'charge' .position 0. of execution {id_} was done, but its result"):
            lab.run(charging_order(op, 7), id=id_)
    assert lab.ledger.count("charge") == 1


def test_a_try_that_failed_for_certain_leaves_the_key_to_the_next(lab: Lab) -> None:
    op = lab.operation("charge", "receipt", Declined("no"))
    with pytest.raises(Declined):
        lab.run(charging_order(op, 7), id="one")
    assert lab.run(charging_order(op, 7), id="two") == "receipt"
    assert lab.ledger.count("charge") == 2
    assert lab.run(charging_order(op, 7), id="three") == "receipt"
    assert lab.ledger.count("charge") == 2


def test_an_open_intent_of_another_execution_is_ambiguous(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL, key="the key")
    op = lab.operation("charge", "receipt", Crash())
    lab.crash(charging_order(op, 7, step=fail), id="one")
    assert lab.parks(charging_order(op, 7, step=fail), id="two") == (
        "guarded step 'charge' (position 0) of execution two is in doubt: an intent under the same key= in one. Nobody "
        "knows whether its effect happened, and its policy does not allow a guess. Look at the remote side "
        "(idempotency key KEY), then: celery durable resolve two 0 --value JSON | --run | --fail"
    )
    assert lab.ledger.count("charge") == 1


def test_under_rerun_the_next_execution_takes_an_open_intent_over(lab: Lab) -> None:
    op = lab.operation("charge", "receipt", Crash())
    lab.crash(charging_order(op, 7), id="one")
    assert lab.run(charging_order(op, 7), id="two") == "receipt"
    # The first one finds what the second has done.
    assert lab.run(charging_order(op, 7), id="one") == "receipt"
    assert lab.ledger.count("charge") in (2, 3)  # RERUN: the remote side deduplicates


@everywhere
def test_a_key_that_is_in_use_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_HELD_ELSEWHERE", 0.02)
    started, go_on = threading.Event(), threading.Event()

    def charge(order: int) -> str:
        lab.ledger.fire("charge")
        started.set()
        go_on.wait(60)
        return "receipt"

    values: dict[str, Any] = {}
    task = lab.task("charges", lambda self: self.durable.step(ORDER, charge, 7))

    def attempt(id_: str) -> None:
        values[id_] = lab.apply(task, id=id_)

    threads = [threading.Thread(target=attempt, args=(id_,)) for id_ in ("one", "two")]
    threads[0].start()
    started.wait(60)
    threads[1].start()
    eventually(lambda: lab.operations.find(task="charges") and len(lab.operations.find(task="charges")) == 2)
    assert values == {}
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert values == {"one": "receipt", "two": "receipt"}
    assert lab.ledger.count("charge") == 1


def test_a_key_is_shared_with_later_steps_of_the_same_execution(lab: Lab) -> None:
    op = lab.operation("charge", "receipt")
    assert lab.run(lambda ctx: [ctx.step(ORDER, op, 7), ctx.step(ORDER, op, 7)]) == ["receipt", "receipt"]
    assert lab.ledger.count("charge") == 1


def test_a_retry_policy_keeps_the_key(lab: Lab) -> None:
    step = charging(OnAmbiguous.RERUN, key="the key", retry=Retry(3, backoff=0))
    op = lab.operation("charge", "receipt", Timeout(), Timeout())
    assert lab.run(charging_order(op, 7, step=step), id="one") == "receipt"
    assert lab.run(charging_order(op, 7, step=step), id="two") == "receipt"
    assert lab.ledger.count("charge") == 3


def test_namespaces_do_not_share_keys(make_lab: Callable[..., Lab], tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    labs = [make_lab(durable_database_url=url, durable_namespace=name) for name in ("shop", "warehouse")]
    for lab in labs:
        lab.run(charging_order(lab.operation("charge"), 7))
    assert labs[0].ledger.count("charge") == 2


@pytest.mark.parametrize("key", [lambda order: "", lambda order: order, lambda order: None])
def test_a_key_is_a_text(lab: Lab, key: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"step 'charge': key= must give a non-empty text, not ('|7|None)"):
        lab.run(charging_order(lab.operation("charge"), 7, step=charging(OnAmbiguous.RERUN, key=key)))
    assert lab.ledger.count("charge") == 0


def test_an_operator_decides_for_a_key_once(lab: Lab) -> None:
    fail = charging(OnAmbiguous.FAIL, key="the key")
    op = lab.operation("charge", "receipt", Crash())
    body = charging_order(op, 7, step=fail)
    lab.crash(body, id="one")
    lab.parks(body, id="one")
    lab.settle("0", EntryKind.RESULT, "by hand", id="one")
    assert lab.run(body, id="two") == "by hand"
    assert lab.run(body, id="one") == "by hand"
    assert lab.ledger.count("charge") == 1
