"""``durable list``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import click

from celery_durable.store.promises.rows import PromiseRow
from celery_durable.store.records import Execution, State

from .base import Desk, DurableCommand, json_option, open_desk, say, write_json
from .promising import awaited_by
from .rendering import age, console_of, iso, moment, print_table

__all__ = ["list_", "summary", "waits_for"]

#: Rows per query.
_PAGE: Final = 500


@click.command("list", cls=DurableCommand)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([s.value for s in State]),
    help="Only executions in this state; may be given several times.",
)
@click.option("--task", help="Only executions of this task.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@click.option(
    "--pruned", is_flag=True, help="Only executions that retention has pruned, of which only the row is left."
)
@json_option
@click.pass_context
def list_(ctx: click.Context, states: Sequence[str], task: str | None, limit: int, pruned: bool, as_json: bool) -> None:
    """List executions, the latest first.

    --json: one object per line.
    """
    desk = open_desk(ctx)
    found = _find(desk, [State(s) for s in states], task, pruned, min(limit + 1, _PAGE))
    if as_json:
        for row, waits in islice(found, limit):
            write_json({**summary(row), "waits_for": waits_for(row, waits)})
        return
    both = list(islice(found, limit + 1))
    rows = [row for row, _ in both]
    if not rows:
        which = " that match" if states or task else ""
        what = "pruned executions" if pruned else "executions"
        say(f"No {what}{which} in namespace {desk.namespace!r}.")
        return
    rows, more = rows[:limit], len(rows) > limit
    console = console_of(ctx)
    columns = ["id", "task", "state", "attempts", "steps"]
    cells = [[r.id, r.task, r.state.value, str(r.attempts), str(r.steps)] for r in rows]
    if console.is_terminal:
        columns.append("updated")
        cells = [[*cell, age(r.updated_at)] for cell, r in zip(cells, rows, strict=True)]
    else:
        columns += ["created", "updated"]
        cells = [[*cell, moment(r.created_at), moment(r.updated_at)] for cell, r in zip(cells, rows, strict=True)]
    if any(row.state is State.SUSPENDED for row in rows):
        columns.append("waits for")
        cells = [[*cell, _awaited(row, waits)] for cell, (row, waits) in zip(cells, both, strict=False)]
    print_table(console, columns, cells, numbers=("attempts", "steps"), folds=("id", "task", "waits for"))
    if more:
        say(f"There are more than these {limit}: --limit {limit * 10}")


def _find(
    desk: Desk, states: Sequence[State], task: str | None, pruned: bool, page_size: int
) -> Iterator[tuple[Execution, list[PromiseRow]]]:
    """Executions with the promises that they wait for; page by page, so that many need no memory."""
    last: int | None = None
    while True:
        page = desk.operations.find(states=states, task=task, limit=page_size, before_pk=last, pruned=pruned)
        awaited = awaited_by(desk, page)
        yield from ((row, awaited.get(row.pk, [])) for row in page)
        if len(page) < page_size:
            return
        last = page[-1].pk


def waits_for(row: Execution, promises: Sequence[PromiseRow]) -> dict[str, Any] | None:
    """What a suspended execution waits for, as JSON."""
    if row.state is not State.SUSPENDED:
        return None
    return {
        "promises": [
            {"id": p.known_as, "name": p.name, "expires_at": iso(p.deadline)} for p in promises if p.child is None
        ],
        "children": [
            {"id": p.child, "name": p.name, "expires_at": iso(p.deadline)} for p in promises if p.child is not None
        ],
        "until": iso(row.wake_at),
    }


def _awaited(row: Execution, promises: Sequence[PromiseRow]) -> str:
    if row.state is not State.SUSPENDED:
        return ""
    words = _brief([p.name for p in promises])
    return ", ".join([*words, moment(row.wake_at)] if row.wake_at is not None else words)


def _brief(names: Sequence[str]) -> list[str]:
    """Names, with their numbers where there are many of one."""
    counted = Counter(names)
    return [name if count == 1 else f"{count} x {name}" for name, count in counted.items()]


def summary(row: Execution) -> dict[str, Any]:
    """An execution in one JSON object."""
    return {
        "id": row.id,
        "task": row.task,
        "state": row.state.value,
        "attempts": row.attempts,
        "retries": row.retries,
        "generation": row.generation,
        "steps": row.steps,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "wake_at": iso(row.wake_at),
        "pruned_at": iso(row.pruned_at),
    }
