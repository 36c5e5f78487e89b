"""``durable cancel``."""

from __future__ import annotations

from typing import Any

import click
from celery import _state
from celery.app.task import Context

from .. import envelope as envelopes
from ..errors import WrongState
from ..store.records import Execution, PayloadKind, State
from .base import Desk, DurableCommand, json_option, open_desk, say, write_json

__all__ = ["cancel"]


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default="cancelled by an operator", show_default=True, help="Why; goes into the journal.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, execution_id: str, reason: str, as_json: bool) -> None:
    """End an execution that has not ended; whoever waits for its result gets TaskRevokedError.

    A step that runs at this moment is not interrupted, but nothing that comes after it is done.
    """
    desk = open_desk(ctx)
    row = desk.operations.get(execution_id)
    if row.state is not State.CANCELLED:
        row = desk.operations.cancel(execution_id, reason)
        done = f"{execution_id} was {row.state}, and is cancelled now."
    elif _is_told(desk, execution_id):
        raise WrongState(f"execution {execution_id} is cancelled already; there is nothing to cancel.")
    else:
        done = f"{execution_id} was cancelled already; the result backend is told now."
    problem = _tell_celery(desk, row, reason)
    if problem is not None:
        say(f"The result backend was not told ({problem}), so AsyncResult.get() goes on waiting. Cancel it once more.")
    if as_json:
        write_json(
            {
                "id": execution_id,
                "state": State.CANCELLED.value,
                "was": row.state.value,
                "result_backend_told": problem is None,
            }
        )
        return
    click.echo(done)
    if row.state is State.RUNNING:
        click.echo("Its worker notices with its next commit; the operation that runs now is not interrupted.")


def _is_told(desk: Desk, execution_id: str) -> bool:
    try:
        return str(desk.app.backend.get_state(execution_id)) == "REVOKED"
    # Whatever the backend raises: it is told again, which does no harm.
    except Exception:
        return False


def _tell_celery(desk: Desk, row: Execution, reason: str) -> str | None:
    """Let waiting callers, and the chord it is part of, know.

    :returns: what went wrong.
    """
    before = _state._tls.current_app  # type: ignore[attr-defined]
    try:
        # Older backends look up the results of a chord in whatever application is current.
        desk.app.set_current()
        request = _request(desk, row)
        store = not (request is not None and request.ignore_result)
        desk.app.backend.mark_as_revoked(row.id, reason, request, store_result=store)
    # Any backend, any client library; the execution is cancelled all the same.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _state._set_current_app(before)  # type: ignore[attr-defined]
    return None


def _request(desk: Desk, row: Execution) -> Any:
    """The request that a worker would have: a chord wants to hear that a member is gone."""
    stored = desk.operations.payload(row.pk, PayloadKind.ENVELOPE)
    if stored is None:
        return None
    message = envelopes.unpack(stored, desk.runtime.envelope_codec)
    try:
        args, kwargs, embed = envelopes.accepted_body(desk.app, message)
    # What cannot be read here may name a chord, which then is not told; the caller is.
    except Exception:
        args, kwargs, embed = (), {}, {}
    return Context({**message["headers"], **message["properties"], **(embed or {}), "args": args, "kwargs": kwargs})
