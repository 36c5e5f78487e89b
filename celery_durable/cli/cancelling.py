"""``durable cancel``."""

from __future__ import annotations

import click

from celery_durable.store.records import State
from celery_durable.store.wrong_state import calls_again

from .base import DurableCommand, json_option, open_desk, say, tell, write_json

__all__ = ["cancel"]


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.option(
    "--reason", default="cancelled by an operator", show_default=True, help="Reason; recorded in the journal."
)
@click.option(
    "--no-undo", is_flag=True, help="Cancel it at once, and undo nothing (more): you have taken care of that."
)
@json_option
@click.pass_context
def cancel(ctx: click.Context, execution_id: str, reason: str, no_undo: bool, as_json: bool) -> None:
    """End an execution that has not ended; whoever waits for its result gets TaskRevokedError.

    A step that runs at this moment is not interrupted, but nothing that comes after it is done. What the execution
    did is undone first, where it has said how.
    """
    from celery_durable.execution import cancelling

    row, problem, state, eager = cancelling.cancel(open_desk(ctx).app, execution_id, reason, undo=not no_undo)
    if problem is not None:
        say(
            f"The result backend was not notified ({problem}), so AsyncResult.get() keeps waiting. Cancel it once more."
        )
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
    if eager:
        tell(f"{execution_id} was {row.state}; its effects are to be undone. {calls_again(row)}")
    elif state is not State.CANCELLED:
        tell(f"{execution_id} was {row.state}; it is being undone, and is cancelled after that.")
    elif row.state is State.CANCELLED:
        tell(f"{execution_id} was cancelled already; the result backend is notified now.")
    else:
        tell(f"{execution_id} was {row.state}, and is cancelled now.")
    if row.state is State.RUNNING:
        tell("Its worker notices at its next commit; the operation that runs now is not interrupted.")
