"""``durable promise``: what executions wait for that somebody outside is to bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]

from ..store.promises import PromiseRow, Settlement
from ..store.records import Execution, PromiseState, State, StoredPayload
from .base import Desk, DurableCommand, json_option, open_desk, say, write_json
from .rendering import console_of, iso, moment, print_table
from .values import DoesNotFit, class_of, given, type_name, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..store.promises import Target

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
            one.id,
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
        "id": one.id,
        "name": one.name,
        "state": one.state.name.lower(),
        "awaited": awaited,
        "created_at": iso(one.created_at),
        "expires_at": iso(one.deadline),
        "settled_at": iso(one.settled_at),
    }


# -- resolve, reject ----------------------------------------------------------------------------------------------


def _settles(function: Callable[..., None]) -> Callable[..., None]:
    """The options of both ways to settle a promise."""
    force = click.option("--force", is_flag=True, help="Without the token, as an operator.")
    token = click.option("--token", metavar="TOKEN", help="The promise's token.")
    argument = click.argument("promise_id", metavar="PROMISE")
    return argument(token(force(json_option(click.pass_context(function)))))


@click.command("resolve", cls=DurableCommand)
@click.option("--value", metavar="JSON", default="null", show_default=True, help="What the body gets.")
@click.option("--as", "as_type", metavar="TYPE", help="What the value is: module:Class. Default: plain JSON.")
@_settles
def resolve_promise(
    ctx: click.Context,
    promise_id: str,
    token: str | None,
    force: bool,
    value: str,
    as_type: str | None,
    as_json: bool,
) -> None:
    """Keep a promise: the execution that waits for it goes on."""
    desk = open_desk(ctx)
    target = _target(desk, promise_id, token, force)
    payload = StoredPayload(*desk.runtime.codec.encode(_value(value, as_type), f"the value of promise {promise_id}"))
    _settle(desk, promise_id, target, PromiseState.RESOLVED, payload, as_json)


@click.command("reject", cls=DurableCommand)
@click.option("--reason", metavar="TEXT", required=True, help="Why; the body's PromiseRejected says it.")
@_settles
def reject_promise(
    ctx: click.Context, promise_id: str, token: str | None, force: bool, reason: str, as_json: bool
) -> None:
    """Break a promise: the execution that waits for it gets a PromiseRejected."""
    from ..resolving import reason_of

    desk = open_desk(ctx)
    target = _target(desk, promise_id, token, force)
    payload = reason_of(desk.runtime, promise_id, reason)
    _settle(desk, promise_id, target, PromiseState.REJECTED, payload, as_json)


def _target(desk: Desk, promise_id: str, token: str | None, force: bool) -> Target:
    from ..errors import WrongToken
    from ..resolving import find

    if (token is not None) == force:
        raise click.UsageError("give the promise's --token; or --force, to settle it as an operator without one")
    if token is not None:
        return find(desk.runtime, promise_id, token)
    target = desk.runtime.promises.target(promise_id)
    if target is None or target.token_hash is None:
        raise WrongToken(f"there is no promise {promise_id!r} that could be settled. See: promise list ID")
    return target


def _settle(
    desk: Desk, promise_id: str, target: Target, state: PromiseState, payload: StoredPayload, as_json: bool
) -> None:
    from ..resolving import settle

    again = settle(desk.app, promise_id, target, state, payload) is Settlement.AGAIN
    word = state.name.lower()
    if as_json:
        write_json({"id": promise_id, "name": target.name, "state": word, "again": again})
    else:
        click.echo(f"Promise {target.name!r} ({promise_id}) {'was' if again else 'is'} {word}{' already' * again}.")


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
