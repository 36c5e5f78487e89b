"""Journal rows that were damaged or changed from outside: a clear error, nothing run, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from celery_durable import DurableContext, JournalCorrupted, OnAmbiguous, PayloadError
from celery_durable.store.records import EntryKind, State
from celery_durable.store.tables import journal
from tests.support.lab import Crash, Lab, everywhere

from .charging import charging

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


#: The row that is changed -> how -> what is said.
DAMAGE: dict[str, tuple[str, dict[str, Any], type[BaseException], str]] = {
    "payload": (
        "load",
        {"payload": b"\xff\x00 not json"},
        JournalCorrupted,
        "the journaled result of step 'load' (position 0) cannot be read back from the journal: ",
    ),
    "truncated-payload": (
        "charge",
        {"payload": b'"rec'},
        JournalCorrupted,
        "the journaled result of step 'charge' (position 1) cannot be read back from the journal: ",
    ),
    "codec": (
        "load",
        {"codec": 9999},
        PayloadError,
        "the journaled result of step 'load' (position 0) ",
    ),
    "kind": (
        "load",
        {"kind": 99},
        JournalCorrupted,
        (
            "position 0 of generation 1 has an entry of kind 99 and effect 1, which this version does not know. The "
            "journal was written by a newer version, or its row was changed from outside."
        ),
    ),
    "effect": (
        "load",
        {"effect": 77},
        JournalCorrupted,
        (
            "position 0 of generation 1 has an entry of kind 4 and effect 77, which this version does not know. The "
            "journal was written by a newer version, or its row was changed from outside."
        ),
    ),
    "error-that-is-none": (
        "load",
        {"kind": int(EntryKind.ERROR)},
        JournalCorrupted,
        (
            "the journaled error of step 'load' (position 0) cannot be read back from the journal: it holds a dict "
            "where an error was recorded. The row was changed or damaged after it was written; restore it from a "
            "backup, or start the work again under another id."
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_a_clear_error_and_runs_nothing(lab: Lab, damage: str) -> None:
    name, values, kind, said = DAMAGE[damage]
    lab.crash(body_of(lab, crash=True))
    before = lab.entries()
    last = lab.rows()[-1].entry if name == "charge" else 0
    lab.sql(sa.update(journal).where(journal.c.name == name, journal.c.entry == last).values(**values))
    with pytest.raises(kind) as error:
        lab.run(body_of(lab))
    assert str(error.value).startswith(f"[{kind.code}] {said}")  # type: ignore[attr-defined]
    assert (lab.ledger.count("load"), lab.ledger.count("charge")) == (1, 1)
    assert lab.execution().generation == 1
    assert len(lab.rows()) == len(before)


def test_an_end_without_its_payload_is_no_value_of_none(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("load", payload=None, codec=None)
    with pytest.raises(JournalCorrupted) as error:
        lab.run(body_of(lab))
    assert str(error.value) == (
        "[CD403] position 0 of generation 1 has the end of step 'load' without its payload. The row was changed from "
        "outside; restore it from a backup. Nothing was run."
    )


def test_an_unknown_effect_is_said_also_where_the_step_is_another_one(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("load", effect=77)
    with pytest.raises(JournalCorrupted, match="an entry of kind 4 and effect 77, which this version does not know"):
        lab.run(lambda ctx: ctx.step("read", lab.operation("read")))
    assert lab.ledger.count("read") == 0


@everywhere
def test_entries_of_one_position_that_name_different_steps_are_refused(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.sql(sa.update(journal).where(journal.c.position == 1, journal.c.entry == 1).values(name="refund"))
    with pytest.raises(JournalCorrupted) as error:
        lab.run(body_of(lab))
    assert str(error.value) == (
        "[CD403] the entries of position 1 of generation 1 name different steps ('charge' and 'refund'). A row was "
        "changed from outside; nothing was run."
    )
    assert lab.ledger.count("charge") == 1


def test_a_mended_row_lets_a_failed_execution_go_on_where_it_stopped(lab: Lab) -> None:
    lab.crash(body_of(lab, crash=True))
    good = lab.rows()[0].payload
    lab.change_row("load", payload=b"\xff")
    with pytest.raises(JournalCorrupted):
        lab.run(body_of(lab))
    assert lab.state() is State.FAILED
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
    lab = make_lab(durable_max_steps=20)
    op = lab.operation("op")

    def body(ctx: DurableContext) -> None:
        for n in range(19):
            ctx.step("s", op, n)
        if lab.ledger.count("op") == 19 and not lab.ledger.count("crashed"):
            lab.ledger.fire("crashed")
            raise Crash

    lab.crash(body)
    lab.change_row("checkpoint", payload=damage)
    with pytest.raises(JournalCorrupted, match="the checkpoint at position 0 of generation 1 cannot be read back"):
        lab.run(body)
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
    with pytest.raises(JournalCorrupted, match="the end of a parallel scope cannot be read back"):
        lab.run(body)
    assert lab.ledger.count("op") == 1


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_body_that_swallows_the_error_still_runs_nothing_twice(lab: Lab, kind: type[BaseException]) -> None:
    lab.crash(body_of(lab, crash=True))
    lab.change_row("charge", payload=b"\xff")
    body = body_of(lab)

    def careless(ctx: DurableContext) -> str:
        try:
            return str(body(ctx))
        except kind:
            return "went on"

    assert lab.run(careless) == "went on"
    assert lab.ledger.count("charge") == 1
