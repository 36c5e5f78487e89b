"""Journal rows that were damaged or changed from outside: a clear error, nothing run, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import DurableContext, OnAmbiguous
from celery_durable.store.records import EntryKind, State
from celery_durable.store.tables import journal
from tests.integration.charging import charging
from tests.support.lab import Crash, Lab, everywhere

FAIL = charging(OnAmbiguous.FAIL)


def body_of(lab: Lab, *, crash: bool = False) -> Callable[[DurableContext], Any]:
    load, charge = lab.operation("load", {"order": 7}), lab.operation("charge", "receipt")

    def body(ctx: DurableContext) -> Any:
        order = ctx.step("load", load)
        receipt = ctx.step(FAIL, charge, order["order"])
        if crash:
            raise Crash
        return receipt

    return body


#: What every reason ends with.
WAITS = (
    "Nothing was run, and nothing is lost. When it can be read again (the old code restored, new code that reads it, "
    "or the row restored): celery durable resume one"
)

#: The row that is changed -> how -> what is said.
DAMAGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "payload": (
        "load",
        {"payload": b"\xff\x00 not json"},
        "the journaled result of step 'load' (position 0) cannot be read back from the journal: ",
    ),
    "truncated-payload": (
        "charge",
        {"payload": b'"rec'},
        "the journaled result of step 'charge' (position 1) cannot be read back from the journal: ",
    ),
    "codec": (
        "load",
        {"codec": 9999},
        "the journaled result of step 'load' (position 0) ",
    ),
    "kind": (
        "load",
        {"kind": 99},
        (
            "position 0 of generation 1 has an entry of kind 99 and effect 1, which this version does not know. The "
            "journal was written by a newer version, or its row was changed from outside."
        ),
    ),
    "effect": (
        "load",
        {"effect": 77},
        (
            "position 0 of generation 1 has an entry of kind 4 and effect 77, which this version does not know. The "
            "journal was written by a newer version, or its row was changed from outside."
        ),
    ),
    "error-that-is-none": (
        "load",
        {"kind": int(EntryKind.ERROR)},
        (
            "the journaled error of step 'load' (position 0) cannot be read back from the journal: TypeError: it holds "
            "a dict instead of an error. The row was changed or damaged after it was written; restore it from "
            "a backup, or start the work again under another id."
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_a_clear_error_and_runs_nothing(lab: Lab, damage: str) -> None:
    name, values, said = DAMAGE[damage]
    lab.crash(body_of(lab, crash=True))
    before = lab.entries()
    last = lab.rows()[-1].entry if name == "charge" else 0
    lab.sql(sa.update(journal).where(journal.c.name == name, journal.c.entry == last).values(**values))
    reason = lab.parks(body_of(lab))
    assert reason.startswith(said)
    assert reason.endswith(f" {WAITS}")
    assert lab.state() is State.QUARANTINED
    assert (lab.ledger.count("load"), lab.ledger.count("charge")) == (1, 1)
    assert lab.execution().generation == 1
    assert len(lab.rows()) == len(before)


def test_an_end_without_its_payload_is_no_value_of_none(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("load", payload=None, codec=None)
    assert lab.parks(body_of(lab)) == (
        "position 0 of generation 1 has the end of step 'load' without its payload. The row was changed from outside; "
        f"restore it from a backup. {WAITS}"
    )


def test_an_unknown_effect_is_said_also_where_the_step_is_another_one(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("load", effect=77)
    reason = lab.parks(lambda ctx: ctx.step("read", lab.operation("read")))
    assert "an entry of kind 4 and effect 77, which this version does not know" in reason
    assert lab.ledger.count("read") == 0


@everywhere
def test_entries_of_one_position_that_name_different_steps_are_refused(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.sql(sa.update(journal).where(journal.c.position == 1, journal.c.entry == 1).values(name="refund"))
    assert lab.parks(body_of(lab)) == (
        "the entries of position 1 of generation 1 name different steps ('charge' and 'refund'). A row was changed "
        f"from outside. {WAITS}"
    )
    assert lab.ledger.count("charge") == 1


def test_a_mended_row_lets_an_execution_go_on_where_it_stopped(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    good = lab.rows()[0].payload
    lab.change_row("load", payload=b"\xff")
    lab.parks(body_of(lab))
    assert lab.state() is State.QUARANTINED
    lab.change_row("load", payload=good)
    lab.operations.resume("one")
    assert lab.run(body_of(lab)) == "receipt"
    assert (lab.ledger.count("load"), lab.ledger.count("charge")) == (1, 1)


def test_a_renamed_row_is_a_divergence_and_the_charge_is_still_not_repeated(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("load", name="read", fingerprint=b"x" * 32)
    assert lab.run(body_of(lab)) == "receipt"
    assert (lab.ledger.count("load"), lab.ledger.count("charge")) == (2, 1)
    assert lab.execution().generation == 2


@pytest.mark.parametrize("damage", [b'[["nonsense"]]', b"7", b"\xff", None])
def test_a_damaged_checkpoint_is_a_clear_error(make_lab: Callable[..., Lab], damage: bytes | None) -> None:
    # One commit, and so one checkpoint, however long the steps take.
    lab = make_lab(durable_max_steps=20, durable_flush_interval=9.0)
    op = lab.operation("op")

    def body(ctx: DurableContext) -> None:
        for n in range(19):
            ctx.step("s", op, n)
        if lab.ledger.count("op") == 19 and not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash

    lab.crash(body)
    lab.change_row("checkpoint", payload=damage)
    assert "the checkpoint at position 0 of generation 1 cannot be read back" in lab.parks(body)
    assert lab.ledger.count("op") == 19


def test_a_damaged_end_of_a_scope_is_a_clear_error(lab: Lab) -> None:
    op = lab.operation("op")

    def body(ctx: DurableContext) -> None:
        with ctx.parallel() as branches:
            branches.step("s", op)
        if not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash

    lab.crash(body)
    lab.sql(sa.update(journal).where(journal.c.kind == int(EntryKind.SCOPE_END)).values(payload=b"\xff"))
    assert "the end of a parallel scope cannot be read back" in lab.parks(body)
    assert lab.ledger.count("op") == 1


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_body_cannot_swallow_it_and_go_on(lab: Lab, kind: type[BaseException]) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("charge", payload=b"\xff")
    body = body_of(lab)

    def careless(ctx: DurableContext) -> None:
        try:
            body(ctx)
        except kind:
            ctx.step("more", lab.operation("more"))

    lab.parks(careless)
    assert (lab.ledger.count("charge"), lab.ledger.count("more")) == (1, 0)
