"""``durable cancel``."""

from __future__ import annotations

import click

from ..store.records import State
from .base import DurableCommand, json_option, open_desk, say, write_json

__all__ = ["cancel"]


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default="cancelled by an operator", show_default=True, help="Why; goes into the journal.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, execution_id: str, reason: str, as_json: bool) -> None:
    """End an execution that has not ended; whoever waits for its result gets TaskRevokedError.

    A step that runs at this moment is not interrupted, but nothing that comes after it is done. What the execution
    did is undone first, where it has said how.
    """
    from .. import cancelling

    row, problem, state = cancelling.cancel(open_desk(ctx).app, execution_id, reason)
    if problem is not None:
        say(f"The result backend was not told ({problem}), so AsyncResult.get() goes on waiting. Cancel it once more.")
    if as_json:
        write_json(
            {
                "id": execution_id,
                "state": state.value,
                "was": row.state.value,
                "result_backend_told": problem is None and state is State.CANCELLED,
            }
        )
        return
    if state is not State.CANCELLED:
        click.echo(f"{execution_id} was {row.state}; what it did is undone now, and then it is cancelled.")
    elif row.state is State.CANCELLED:
        click.echo(f"{execution_id} was cancelled already; the result backend is told now.")
    else:
        click.echo(f"{execution_id} was {row.state}, and is cancelled now.")
    if row.state is State.RUNNING:
        click.echo("Its worker notices with its next commit; the operation that runs now is not interrupted.")
