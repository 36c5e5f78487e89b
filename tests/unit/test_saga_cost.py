"""What a body is to undo is kept at the same price for each thing, however many there are."""

from __future__ import annotations

import gc
import sys
from typing import Any

from celery_durable.effects import Intent, OnAmbiguous
from celery_durable.replay.saga import Saga
from celery_durable.steps.compensation import Undos
from celery_durable.steps.descriptor import StepDescriptor

UNDO = StepDescriptor.guarded("undo", Intent.CUSTOM, on_ambiguous=OnAmbiguous.RERUN)


def operations_of(number: int) -> int:
    """What the interpreter does to keep so many things to undo, in operations of its own."""
    undos = Undos(Saga())
    count = 0

    def trace(frame: Any, what: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += what == "opcode"
        return trace

    before = sys.gettrace()
    # What other tests have left is not to end in here.
    gc.disable()
    sys.settrace(trace)
    try:
        for position in range(number):
            undos.add("", position, UNDO, print, (), {})
    finally:
        sys.settrace(before)
        gc.enable()
    assert len(undos.backwards()) == number
    return count


def test_keeping_what_is_to_be_undone_costs_the_same_for_the_last_as_for_the_first():
    assert operations_of(400) < 2.5 * operations_of(200)


def test_what_is_registered_at_one_place_is_undone_backwards():
    undos = Undos(Saga())
    for name in ("first", "second", "third"):
        undos.add("", 4, UNDO, print, (name,), {}, before=True)
    undos.add("", 3, UNDO, print, ("earlier",), {})
    assert [undo.args[0] for undo in undos.backwards()] == ["third", "second", "first", "earlier"]
