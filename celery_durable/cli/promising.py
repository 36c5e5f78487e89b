"""``durable promise``: the promises that executions wait for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]

from celery_durable.store.promises.rows import PromiseRow
from celery_durable.store.promises.settling import Settlement
from celery_durable.store.records import FINAL_STATES, Execution, PromiseState, State, StoredPayload

from .base import Desk, DurableCommand, command_line, json_option, open_desk, say, tell, who, write_json
from .rendering import console_of, iso, moment, print_table
from .values import DoesNotFit, class_of, given, type_name, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.store.promises.rows import Target

__all__ = ["awaited_by", "promise"]


def awaited_by(desk: Desk, rows: Sequence[Execution]) -> dict[int, list[PromiseRow]]:
    """The promises that executions wait for at this moment, by the executions' keys."""
    epochs = {row.pk: row.epoch for row in rows if row.state is State.SUSPENDED}
    found: dict[int, list[PromiseRow]] = {}
    for one in desk.runtime.promises.of(list(epochs)) if epochs else ():
        if one.pending and one.awaited == epochs[one.pk]:
            found.setdefault(one.pk, []).append(one)
    return found


# -- list ---------------------------------------------------------------------------------------------------------


@click.command("list", cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@json_option
@click.pass_context
def list_promises(ctx: click.Context, execution_id: str, as_json: bool) -> None:
    """List the promises of an execution, the earliest first.

    --json: one object per line. Tokens are never shown.
    """
    desk = open_desk(ctx)
    row = desk.operations.get(execution_id)
    found = desk.runtime.promises.of([row.pk])
    awaited = {one.id for one in awaited_by(desk, [row]).get(row.pk, ())}
    if as_json:
        for one in found:
            write_json(_as_json(one, one.id in awaited))
        return
    if not found:
        say(f"Execution {execution_id} has made no promise.")
        return
    cells = [
        (
            one.known_as,
            one.name,
            one.state.name.lower(),
            "yes" if one.id in awaited else "no",
            "" if one.deadline is None else moment(one.deadline),
        )
        for one in found
    ]
    print_table(console_of(ctx), ("id", "name", "state", "awaited", "expires"), cells, folds=("name",))


def _as_json(one: PromiseRow, awaited: bool) -> dict[str, Any]:
    return {
        "id": one.known_as,
        "name": one.name,
        "child": one.child,
        "state": one.state.name.lower(),
        "awaited": awaited,
        "created_at": iso(one.created_at),
        "expires_at": iso(one.deadline),
        "settled_at": iso(one.settled_at),
    }


# -- resolve, reject ----------------------------------------------------------------------------------------------


def _token(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    return sys.stdin.readline().strip() if given == "-" else given


def _settles(function: Callable[..., None]) -> Callable[..., None]:
    """The options of both ways to settle a promise."""
    force = click.option(
        "--force", is_flag=True, help="Settle it as an operator, without the token; or in place of a child."
    )
    note = click.option("--note", metavar="TEXT", help="With --force: the reason; recorded in the journal.")
    token = click.option(
        "--token",
        metavar="TOKEN",
        envvar="CELERY_DURABLE_TOKEN",
        callback=_token,
        help=(
            "The promise's token; - reads it from standard input. Other users can see the arguments of a command: "
            "give it there, or in the variable CELERY_DURABLE_TOKEN."
        ),
    )
    argument = click.argument("promise_id", metavar="PROMISE")
    return argument(token(force(note(json_option(click.pass_context(function))))))


@click.command("resolve", cls=DurableCommand)
@click.option("--value", metavar="JSON", default="null", show_default=True, help="The value that the body gets.")
@click.option("--as", "as_type", metavar="TYPE", help="Type of the value: module:Class. Default: plain JSON.")
@_settles
def resolve_promise(
    ctx: click.Context,
    promise_id: str,
    token: str | None,
    force: bool,
    note: str | None,
    value: str,
    as_type: str | None,
    as_json: bool,
) -> None:
    """Resolve a promise: the execution that waits for it continues.

    PROMISE is a promise's id; or the task id of a child task that is lost and will never end, whose result VALUE is
    then.
    """
    desk = open_desk(ctx)
    found = _find(ctx, desk, promise_id, token, force, note)
    decoded = _value(value, as_type)
    kept = decoded if found.child is None else {"value": decoded}
    payload = StoredPayload(*desk.runtime.codec.encode(kept, f"the value of {found}"))
    _settle(desk, found, PromiseState.RESOLVED, payload, as_json)


@click.command("reject", cls=DurableCommand)
@click.option("--reason", metavar="TEXT", required=True, help="Reason; PromiseRejected in the body carries it.")
@_settles
def reject_promise(
    ctx: click.Context,
    promise_id: str,
    token: str | None,
    force: bool,
    note: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Break a promise: the execution that waits for it gets a PromiseRejected.

    PROMISE is a promise's id; or the task id of a child task that is lost and will never end, for which a ChildFailed
    is raised then.
    """
    from celery_durable.client.promises import rejection_payload

    desk = open_desk(ctx)
    found = _find(ctx, desk, promise_id, token, force, note)
    if found.child is None:
        payload = rejection_payload(desk.runtime, found.id, reason)
    else:
        payload = StoredPayload(*desk.runtime.codec.encode_error(RuntimeError(reason), f"the error of {found}"))
    _settle(desk, found, PromiseState.REJECTED, payload, as_json)


class _Found(NamedTuple):
    """What is to be settled."""

    id: str
    target: Target
    #: The task id of the child that is to keep it; None where somebody outside is.
    child: str | None
    note: str | None
    #: By an operator, and not by somebody who has the token.
    forced: bool

    def __str__(self) -> str:
        if self.child is None:
            return f"promise {self.target.name!r} ({self.id})"
        return f"child {self.target.name!r} ({self.child})"


def _find(ctx: click.Context, desk: Desk, promise_id: str, token: str | None, force: bool, note: str | None) -> _Found:
    from celery_durable.client.promises import find
    from celery_durable.errors import WrongToken
    from celery_durable.identity import child_of
    from celery_durable.store.children import kept_by

    if (token is not None) == force:
        raise click.UsageError("give the promise's --token; or --force, to settle it as an operator without one")
    if note is not None and not force:
        raise click.UsageError("--note says why an operator settles it: it goes with --force")
    known = kept_by(promise_id) or promise_id
    target = desk.runtime.promises.target(known)
    child = child_of(known) if target is not None and target.token_hash is None else None
    if token is not None:
        if child is not None and target is not None:
            raise WrongToken(
                f"child {target.name!r} ({child}) has no token: the end of that task settles it. If the task is lost: "
                f"{command_line(ctx)} promise {ctx.info_name} {child} --force"
            )
        return _Found(promise_id, find(desk.runtime, promise_id, token), None, None, False)
    if target is not None and desk.operations.namespace_of(target.pk) != desk.namespace:
        target = None  # another application's
    if target is None:
        raise WrongToken(f"there is no promise {promise_id!r} that could be settled. See: promise list ID")
    if child is not None:
        _check_lost(ctx, desk, target, child)
    return _Found(known, target, child, note, True)


def _check_lost(ctx: click.Context, desk: Desk, target: Target, child: str) -> None:
    """
    :raises WrongState: the child is an execution that has not ended, and would continue.
    """
    from celery_durable.errors import UnknownExecution, WrongState

    try:
        row = desk.operations.get(child)
    except UnknownExecution:
        return
    if row.state in FINAL_STATES:
        return
    cure = {State.AMBIGUOUS: "resolve", State.QUARANTINED: "resume"}.get(row.state, "show")
    raise WrongState(
        f"child {target.name!r} ({child}) is not lost: it is an execution, and {row.state}. Its parent continues with "
        f"its outcome. Deal with it by: {command_line(ctx)} {cure} {child}; or cancel it, which raises ChildCancelled "
        f"in the parent: {command_line(ctx)} cancel {child}"
    )


def _settle(desk: Desk, found: _Found, state: PromiseState, payload: StoredPayload, as_json: bool) -> None:
    from celery_durable.client.promises import settle

    word = state.name.lower()
    note = None
    if found.forced:
        said = {"reason": "operator", "decision": word, "by": who(), "note": found.note, "promise": found.id}
        note = StoredPayload(*desk.runtime.codec.encode(said, "the note"))
    again = settle(desk.app, found.id, found.target, state, payload, note=note) is Settlement.AGAIN
    if as_json:
        write_json({"id": found.id, "name": found.target.name, "child": found.child, "state": word, "again": again})
        return
    said_so = f"{found}"
    tell(f"{said_so[0].upper()}{said_so[1:]} {'was' if again else 'is'} {word}{' already' * again}.")


def _value(text: str, as_type: str | None) -> Any:
    value = given(text)
    if as_type is None or as_type == "json":
        return value
    annotation = class_of(as_type)
    try:
        return typed(value, annotation)
    except DoesNotFit as error:
        raise click.UsageError(f"--value does not fit {type_name(annotation)}: {error}.") from None


@click.group(cls=DYMGroup)
def promise() -> None:
    """Promises: what executions wait for that somebody outside is to bring."""


for command in (list_promises, resolve_promise, reject_promise):
    promise.add_command(command)
