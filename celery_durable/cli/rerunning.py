"""``durable rerun``."""

from __future__ import annotations

import click

from .base import DurableCommand, command_line, json_option, open_desk, tell, write_json

__all__ = ["rerun"]


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.option("--from-step", metavar="STEP", help="Position or name of the first step to run again; default: all.")
@click.option("--id", "durable_id", metavar="NEW", help="Id of the new execution; default: a random one.")
@click.option("--no-callbacks", is_flag=True, help="Without its links, and without the rest of its chain.")
@json_option
@click.pass_context
def rerun(
    ctx: click.Context,
    execution_id: str,
    from_step: str | None,
    durable_id: str | None,
    no_callbacks: bool,
    as_json: bool,
) -> None:
    """Do the work of an execution again from a step on, in a new execution.

    What the steps before that one have returned is taken over: they are not done again. The others are, also the
    guarded ones, under new idempotency keys. The old execution stays as it is.
    """
    from celery_durable.client.rerun import rerun as start

    new_id = start(open_desk(ctx).app, execution_id, from_step, durable_id=durable_id, callbacks=not no_callbacks)
    if as_json:
        write_json({"id": new_id, "rerun_of": execution_id})
        return
    tell(f"{new_id} does the work of {execution_id} again, as soon as a worker is free.")
    tell(f"  {command_line(ctx)} show {new_id}")
