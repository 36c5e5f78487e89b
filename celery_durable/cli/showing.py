"""``durable show``."""

from __future__ import annotations

import click

from .base import DurableCommand, command_line, json_option, open_desk, write_json
from .portrait import draw
from .rendering import console_of

__all__ = ["show"]


@click.command(cls=DurableCommand)
@click.argument("execution_id", metavar="ID")
@click.option("--generation", type=int, help="Show this generation of the journal; default: the current one.")
@click.option("--reveal", is_flag=True, help="Show arguments, results and error messages too.")
@json_option
@click.pass_context
def show(ctx: click.Context, execution_id: str, generation: int | None, reveal: bool, as_json: bool) -> None:
    """Show one execution and its steps.

    --json: one object, with the steps in a list.
    """
    portrait = draw(open_desk(ctx), execution_id, generation, reveal)
    if as_json:
        write_json(portrait.as_json())
        return
    from .printing import print_portrait

    print_portrait(console_of(ctx), portrait, command_line(ctx))
