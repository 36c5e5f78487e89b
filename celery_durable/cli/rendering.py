"""Text for people: tables, times, durations. Output to a pipe is not coloured, cut off or wrapped."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from celery_durable.codec.preview import printable

from .plain_text import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["STATE_STYLES", "age", "amount", "console_of", "duration", "iso", "moment", "print_table", "words", "write"]

#: Wider than any line that we print.
_ENDLESS = 20_000
#: A column that folds is not made narrower than this: an id of Celery's.
_FOLDED = 36

STATE_STYLES = {
    "completed": "green",
    "running": "cyan",
    "failed": "red",
    "ambiguous": "bold yellow",
    "quarantined": "bold red",
    "cancelled": "dim",
    "done": "green",
    "skipped": "yellow",
    "lost": "red",
    "in doubt": "bold yellow",
    "conflict": "bold yellow",
    "trying": "cyan",
    "begun": "yellow",
    "retrying": "yellow",
    "unreadable": "red",
}


def console_of(ctx: click.Context) -> Console:
    """The console of this command; obeys NO_COLOR and Celery's ``--no-color``."""
    from rich.console import Console

    options: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    if ctx.obj.no_color:
        options["no_color"] = True
    console = Console(**options)
    return console if console.is_terminal else Console(width=_ENDLESS, **options)


def words(text: str, style: str = "") -> Text:
    """A line that may hold anything, to be written."""
    from rich.text import Text

    return Text(printable(text), style=style)


def write(console: Console, renderable: RenderableType) -> None:
    """Print, without blanks at the ends of lines."""
    if isinstance(renderable, str):
        renderable = clean(renderable)
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    folds: Sequence[str] = (),
) -> None:
    """Print a table; nothing in it is cut off.

    :param numbers: columns that are aligned to the right.
    :param folds: columns whose cells may continue in the next line where the terminal is narrow.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    cleaned = [[printable(cell) for cell in row] for row in rows]
    needed = 4
    for number, column in enumerate(columns):
        width = max(cell_len(text) for text in (column, *(row[number] for row in cleaned)))
        least = min(width, _FOLDED) if column in folds else width
        needed += least + 3
        table.add_column(
            column,
            overflow="fold",
            min_width=least,
            no_wrap=column not in folds,
            justify="right" if column in numbers else "left",
        )
    for row in cleaned:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    # Where even that does not fit, the terminal breaks the lines: better than words in pieces.
    console.width = max(console.width, needed)
    write(console, table)


def moment(ms: int, digits: int = 0) -> str:
    """A time of the journal, for people.

    :param digits: of the second's fraction; 0 or 3.
    """
    fraction = f".{ms % 1000:03}" if digits else ""
    return f"{_utc(ms):%Y-%m-%d %H:%M:%S}{fraction} UTC"


def age(ms: int) -> str:
    """How long ago a time of the journal was, by the clock of this machine."""
    seconds = max(0, int(time.time() - ms / 1000))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def iso(ms: int | None) -> str | None:
    """A time of the journal in ISO 8601."""
    return None if ms is None else _utc(ms).isoformat(timespec="milliseconds")


def _utc(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.timezone.utc)


def duration(ms: float | None) -> str:
    """A duration of a step, for people."""
    if ms is None:
        return ""
    if ms < 1000:
        return f"{ms:.1f} ms"
    return f"{ms / 1000:.1f} s" if ms < 120_000 else f"{ms / 60_000:.1f} min"


def amount(size: int) -> str:
    """A number of bytes, for people."""
    for unit, each in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)):
        if size >= each:
            return f"{size / each:.1f} {unit}"
    return f"{size} bytes"
