"""The command line of the demo: ``python -m example_project.demo``."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

import click
from rich.console import Console

from ..config import Config
from .audit import examine, problems
from .director import Director, Outcome, prepare
from .display import Progress, result_table
from .journal import JournalError
from .options import Options
from .report import as_json, sections, verdict
from .stage import StageError

DEFAULTS = Options()
#: Seconds that a demo may take in which a person presses the buttons.
BY_HAND = 1800.0


def without_password(url: str) -> str:
    """An address that can be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def make_console(stderr: bool) -> Console:
    """The console; where it is no terminal, it is made wide enough for the table."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """End like Ctrl-C does: the stage is cleared on the way out."""
    raise KeyboardInterrupt


@click.command()
@click.option("--orders", default=DEFAULTS.orders, show_default=True, type=click.IntRange(1))
@click.option("--workers", default=DEFAULTS.workers, show_default=True, type=click.IntRange(1))
@click.option(
    "--concurrency", default=DEFAULTS.concurrency, show_default=True, type=click.IntRange(1), help="Per worker."
)
@click.option(
    "--kill-every",
    default=DEFAULTS.kill_every,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between two kills, on average. 0 kills nobody.",
)
@click.option("--seed", default=DEFAULTS.seed, show_default=True, help="For orders, faults and the choice of victims.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    help=f"Seconds after which an open order counts as lost.  [default: {DEFAULTS.timeout:g}, by hand {BY_HAND:g}]",
)
@click.option("--by-hand", is_flag=True, help="Nobody presses the buttons of the front desk's page but you.")
@click.option(
    "--flushall",
    is_flag=True,
    help="Redis only: empty the broker once in mid-flight. Clears the database that BROKER names (FLUSHDB), not the "
    "server's others.",
)
@click.option(
    "--dir",
    "directory",
    default=".demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Working directory; made anew by every run.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print the result as one JSON object and nothing else.")
def demo(
    orders: int,
    workers: int,
    concurrency: int,
    kill_every: float,
    seed: int,
    timeout: float | None,
    by_hand: bool,
    flushall: bool,
    directory: Path,
    as_json_: bool,
) -> None:
    """Run the shop, kill its workers at random, and check that no order is lost or charged twice.

    BROKER and DATABASE choose servers; without them everything is a file in the working directory.
    """
    config = Config.from_env({**os.environ, "SHOP_DIR": str(directory)})
    if flushall and not config.broker.startswith(("redis", "valkey")):
        raise click.UsageError("--flushall needs a Redis broker, such as BROKER=redis://localhost/5.")
    if flushall and not config.outbox:
        raise click.UsageError("--flushall needs the outbox: orders that are only in the broker go with it.")
    options = dataclasses.replace(
        DEFAULTS,
        orders=orders,
        workers=workers,
        concurrency=concurrency,
        kill_every=kill_every,
        seed=seed,
        timeout=timeout or (BY_HAND if by_hand else DEFAULTS.timeout),
        by_hand=by_hand,
        flush=flushall,
    )
    prepare(config.directory)
    signal.signal(signal.SIGTERM, interrupt)
    console = make_console(as_json_)
    logs = config.directory / "logs"
    if not as_json_:
        console.print(
            f"Broker: {without_password(config.broker)}  Journal: {without_password(config.database)}", soft_wrap=True
        )
    try:
        with Progress(console, quiet=as_json_) as progress:
            outcome = Director(config, options, progress).run()
    except (StageError, JournalError) as error:
        console.print(str(error), style="bold red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print(f"Stopped. No process is left; the logs are in {logs}.", markup=False)
        sys.exit(130)
    sys.exit(finish(outcome, console, logs, as_json_))


def finish(outcome: Outcome, console: Console, logs: Path, json_wanted: bool) -> int:
    """Show the result; return the exit code."""
    reports = examine(outcome.evidence)
    found = problems(outcome.evidence, reports)
    if json_wanted:
        click.echo(json.dumps(as_json(outcome, reports, found), indent=2))
        return 1 if found else 0
    console.print(result_table("What is in the books now", sections(outcome, reports, found), console.width))
    console.print(verdict(reports, found), style="bold red" if found else "bold green", markup=False, soft_wrap=True)
    for problem in found:
        console.print(f"  - {problem}", style="red", markup=False)
    if found:
        console.print(f"The logs of all processes are in {logs}.", markup=False)
    return 1 if found else 0


if __name__ == "__main__":
    demo()
