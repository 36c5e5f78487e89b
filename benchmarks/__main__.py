"""``make bench``, or ``python -m benchmarks``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.support import databases

from . import machine, plot, scale
from .budget import judge
from .peers.peer import PEERS
from .report import Report
from .suites import SUITES, Bench


class Words(click.ParamType[Any]):
    """Words with commas, out of some that are known; ``none`` for none of them."""

    name = "words"

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        words = () if value == "none" else tuple(word.strip() for word in value.split(",") if word.strip())
        if unknown := [word for word in words if word not in self.known]:
            self.fail(f"unknown: {', '.join(unknown)}; known are {', '.join(self.known)}, none", param, ctx)
        return tuple(word for word in self.known if word in words)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return ",".join(self.known)


_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@click.option("--suite", "suites", type=Words(SUITES), default=",".join(SUITES), help="What to measure.")
@click.option(
    "--database",
    "kinds",
    type=Words(databases.FINDERS),
    default=None,
    help="On what.  [default: all; sqlite,postgresql where --quick]",
)
@click.option("--broker", type=click.Choice(["redis", "rabbitmq"]), default="redis", help="Between client and workers.")
@click.option("--peers", type=Words(PEERS), default=None, help="Beside whom.  [default: all; none where --quick]")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each case.  [default: 5; 1 where --quick]")
@click.option("--million", is_flag=True, help="Load a journal of a million executions too (about 4 GB).")
@click.option("--quick", is_flag=True, help="Only show that everything works: the figures say nothing.")
@click.option("--json", "json_path", type=_FILE, help="Write everything, unrounded.")
@click.option("--markdown", "markdown_path", type=_FILE, help="Write the tables for a document.")
@click.option("--plot", "plot_path", type=_FILE, help="Draw the ratios (needs matplotlib).")
def main(
    suites: tuple[str, ...],
    kinds: tuple[str, ...] | None,
    broker: str,
    peers: tuple[str, ...] | None,
    rounds: int | None,
    million: bool,
    quick: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure celery_durable beside what it is compared with, in one run.

    What is compared takes turns, round after round. Ends with 1 where something could not be measured that was named on
    the command line, or that failed; never because of a figure.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    named = {*(f"database {kind}" for kind in kinds or ()), *(f"peer {name}" for name in peers or ())}
    facts: dict[str, Any] = {"machine": machine.facts()}
    with console.status("setting up") as status:

        def progress(text: str) -> None:
            status.update(text)

        def begins(text: str) -> None:
            # A run may take an hour, and its output may be a file.
            console.print(f"[{time.strftime('%H:%M:%S')}] {text}", style="dim", highlight=False, markup=False)

        bench = Bench(
            broker=broker,
            peers=peers if peers is not None else () if quick else tuple(PEERS),
            rounds=rounds or (1 if quick else 5),
            quick=quick,
            million=million,
            progress=progress,
            begins=begins,
        )
        wanted = kinds if kinds is not None else ("sqlite", "postgresql") if quick else tuple(databases.FINDERS)
        try:
            bench.run(suites, wanted)
        finally:
            bench.close()
    facts |= bench.databases
    if bench.versions:
        facts["others"] = bench.versions
    warnings = [
        *(["--quick: the figures say nothing"] if quick else []),
        *machine.warnings_of(facts["machine"], bench.databases),
    ]
    found = [kind for kind in wanted if kind in bench.databases]
    verdicts = judge(bench.sections, suites, found, max(scale.sizes(quick, million)), judged=not quick)
    report = Report(bench.sections, verdicts, facts=facts, missing=bench.missing, warnings=warnings)
    report.show(console)
    if json_path:
        report.write_json(json_path)
    if markdown_path:
        markdown_path.write_text(report.markdown(), encoding="utf-8")
    if plot_path:
        plot.draw(bench.sections, plot_path)
    if any(what in named or " on " in what for what in bench.missing):
        sys.exit(1)


if __name__ == "__main__":
    main()
