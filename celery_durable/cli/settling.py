"""``durable resolve`` and ``resume``: what an operator decides, and how the execution continues after that."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Final

import click

from celery_durable.errors import AmbiguousEffect
from celery_durable.store.records import Doubt, EntryKind, Execution, PayloadKind, State, StoredPayload

from .base import Desk, DurableCommand, command_line, json_option, open_desk, say, tell, who, write_json
from .values import DoesNotFit, class_of, given, type_name, typed

__all__ = ["resolve", "resume"]

_PLACE: Final = re.compile(r"(#undo/|(\d+\.\d+/)*)\d+")
#: Stands for ``--fail`` without a message.
_NO_MESSAGE: Final = ""


# -- resolve ------------------------------------------------------------------------------------------------------


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.argument("place", metavar="[POSITION]", required=False)
@click.option("--value", metavar="JSON", help="It happened, and this is its result.")
@click.option("--run", is_flag=True, help="It did not happen: run it, with the same idempotency key.")
@click.option(
    "--fail",
    metavar="[MESSAGE]",
    is_flag=False,
    flag_value=_NO_MESSAGE,
    default=None,
    help="Raise AmbiguousEffect in the body, with this message.",
)
@click.option(
    "--as",
    "as_type",
    metavar="TYPE",
    help="Type of the value: module:Class, or json for plain JSON. Default: the return type of the step's function.",
)
@click.option("--note", metavar="TEXT", help="Reason; recorded in the journal.")
@json_option
@click.pass_context
def resolve(
    ctx: click.Context,
    execution_id: str,
    place: str | None,
    value: str | None,
    run: bool,
    fail: str | None,
    as_type: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Settle a step in doubt of an ambiguous execution.

    POSITION is the step's, as `show` prints it (2, or 4.0/1 in a branch); it can be left out where only one step is in
    doubt. The execution continues when its last doubt is settled.
    """
    _check_usage(place, value, run, fail, as_type)
    desk = open_desk(ctx)
    row = desk.operations.get(execution_id)
    doubt = _the_doubt(desk, row, place, ctx)
    kind, decision, payload = EntryKind.RUN_AGAIN, "run it", None
    if value is not None:
        payload, shown = _value(desk, row, doubt, value, as_type)
        kind, decision = EntryKind.RESULT, f"done, with {shown}"
    elif fail is not None:
        kind, decision, payload = EntryKind.ERROR, "failed", _error(desk, row, doubt, fail)
    said = {"reason": "operator", "decision": decision, "by": who(), "note": note}
    codec = desk.runtime.codec
    stored_note = StoredPayload(*codec.encode(said, "the note"))
    left = desk.operations.resolve(execution_id, doubt.scope, doubt.position, kind, payload, note=stored_note)
    if as_json:
        write_json(
            {
                "id": execution_id,
                "position": doubt.place,
                "name": doubt.name,
                "decision": {EntryKind.RESULT: "value", EntryKind.RUN_AGAIN: "run", EntryKind.ERROR: "fail"}[kind],
                "state": (State.AMBIGUOUS if left else State.PENDING).value,
                "remaining": [d.place for d in left],
            }
        )
        return
    tell(f"Step {doubt.name!r} at position {doubt.place} of {execution_id}: {decision}.")
    if left:
        tell(f"Still in doubt: {_listed(left)}. The execution continues when they are settled too.")
    else:
        tell(_goes_on(desk, row))


def _check_usage(place: str | None, value: str | None, run: bool, fail: str | None, as_type: str | None) -> None:
    if (value is not None) + run + (fail is not None) != 1:
        raise click.UsageError("say what happened to the step, with one of --value JSON, --run and --fail [MESSAGE]")
    if as_type is not None and value is None:
        raise click.UsageError("--as says what --value is; there is no --value")
    if place is not None and not _PLACE.fullmatch(place):
        raise click.UsageError(f"{place!r} is no position; positions look like 2, or 4.0/1 in a branch")
    if place is None and fail and _PLACE.fullmatch(fail):
        raise click.UsageError(f"is {fail!r} a position or a message? A position comes before --fail")


def _the_doubt(desk: Desk, row: Execution, place: str | None, ctx: click.Context) -> Doubt:
    """The step that is meant. Whether it can be settled is for the store to say, in its transaction."""
    doubts = desk.operations.doubts(row) if row.state is State.AMBIGUOUS else []
    if place is not None:
        scope, _, position = place.rpartition("/")
        for doubt in doubts:
            if (doubt.scope, doubt.position) == (scope, int(position)):
                return doubt
        return Doubt(scope, int(position), "", None, parked=False)
    asked = [d for d in doubts if d.parked] or doubts
    if len(asked) > 1:
        raise click.UsageError(f"{len(asked)} steps are in doubt, say which POSITION: {_listed(asked)}", ctx)
    return asked[0] if asked else Doubt("", 0, "", None, parked=False)


def _listed(doubts: list[Doubt]) -> str:
    return ", ".join(f"{d.place} ({d.name})" for d in doubts)


def _value(desk: Desk, row: Execution, doubt: Doubt, text: str, as_type: str | None) -> tuple[StoredPayload, str]:
    """The value that the body is to get, encoded, and what to call it."""
    value = given(text)
    annotation = _annotation(desk, row, doubt, as_type)
    name = "plain JSON" if annotation is Any else type_name(annotation)
    try:
        value = typed(value, annotation)
    except DoesNotFit as error:
        raise click.UsageError(
            f"--value does not fit {name}, which step {doubt.name!r} returns: {error}. (--as json stores it as it is)"
        ) from None
    where = f"the value for step {doubt.name!r}"
    payload, _ = desk.runtime.codec.roundtrip(value, where)
    return StoredPayload(*payload), f"a value ({name})" if value is not None else "no value"


def _annotation(desk: Desk, row: Execution, doubt: Doubt, as_type: str | None) -> Any:
    if as_type == "json":
        return Any
    if as_type is not None:
        return class_of(as_type)
    from celery_durable.steps.decorator import return_types

    # The modules of tasks that a worker would import; a step may be in any of them.
    with contextlib.suppress(Exception):
        desk.app.loader.import_default_modules()
    task = desk.app.tasks.get(row.task)
    known = return_types(doubt.name, getattr(task, "__module__", None))
    if len(known) == 1 and not isinstance(known[0], str):
        return known[0]
    if doubt.name:
        say(
            f"Note: this command does not know what step {doubt.name!r} returns, so the value is stored as plain JSON. "
            "If the body expects an object, name its class: --as module:Class"
        )
    return Any


def _error(desk: Desk, row: Execution, doubt: Doubt, message: str) -> StoredPayload:
    text = message or (
        f"step {doubt.name!r} (position {doubt.place}) of execution {row.id} was in doubt; an operator decided "
        "that it failed."
    )
    error = AmbiguousEffect(text, execution_id=row.id, step_id=doubt.place, step=doubt.name, key=doubt.key)
    return StoredPayload(*desk.runtime.codec.encode_error(error, f"the error for step {doubt.name!r}"))


# -- resume -------------------------------------------------------------------------------------------------------


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@json_option
@click.pass_context
def resume(ctx: click.Context, execution_id: str, as_json: bool) -> None:
    """Let an ambiguous, quarantined or failed execution continue where it stopped.

    Steps in doubt are not settled by this: their policy is asked again. To settle them: resolve.
    """
    desk = open_desk(ctx)
    before = desk.operations.resume(execution_id)
    if as_json:
        write_json({"id": execution_id, "state": State.PENDING.value, "was": before.state.value})
        return
    tell(f"{execution_id} was {before.state}. {_goes_on(desk, before)}")
    asked = desk.operations.doubts(before) if before.state is State.AMBIGUOUS else []
    if asked:
        say(
            f"Still in doubt: {_listed(asked)}. The policy of each decides again; where it cannot, the execution is "
            f"parked again. To settle one: {command_line(ctx)} resolve {execution_id}"
        )


def _goes_on(desk: Desk, row: Execution) -> str:
    if desk.operations.payload(row.pk, PayloadKind.ENVELOPE) is None:
        return f"It ran eagerly, so no worker has its message: call the task again with task_id={row.id!r}."
    return "It continues as soon as a worker is free."
