"""Progress while the demo runs, and the table at its end. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .chaos import Kill
from .options import Options


@dataclass
class Snapshot:
    """What can be said while the demo runs."""

    orders: int
    submitted: int = 0
    invoiced: int = 0
    refused: int = 0
    refunds: int = 0
    charges: int = 0
    parcels: int = 0
    mails: int = 0
    #: What people have not answered yet.
    questions: int = 0

    @property
    def closed(self) -> int:
        """Orders that have come to an end, good or bad."""
        return self.invoiced + self.refused + self.refunds


def killed(kills: list[Kill]) -> str:
    """The kills so far, in words."""
    children = sum(kill.kind == "child" for kill in kills)
    return f"{count(children, 'process', 'processes')}, {count(len(kills) - children, 'whole worker')}"


def count(number: int, one: str, many: str = "") -> str:
    """A number of things, in words."""
    return f"{number} {one if number == 1 else many or one + 's'}"


class Progress:
    """Shows snapshots: a live panel on a terminal, a line every other second elsewhere."""

    INTERVAL = 2.0

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._started = time.monotonic()
        self._last_line = 0.0
        self._told = 0
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live and not self.quiet:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live and not self.quiet:
            self._live.stop()

    def announce(self, options: Options, desk: str) -> None:
        """Say what is about to happen, and where the page is on which people approve and pay."""
        if self.quiet:
            return
        workers = f"{count(options.workers, 'worker')} of {count(options.concurrency, 'process', 'processes')} each"
        kills = f"; about every {options.kill_every:g} s one is killed (SIGKILL)" if options.kill_every else ""
        self.console.print(f"{count(options.orders, 'order')} for {workers}{kills}.", soft_wrap=True)
        about = "Large orders wait there for an approval, and some customers pay there."
        self.console.print(f"The front desk: {desk}  {about}", soft_wrap=True)
        who = "Press the buttons there." if options.by_hand else "The demo presses the buttons, unless you are faster."
        self.console.print(who, soft_wrap=True)

    def show(self, snapshot: Snapshot, kills: list[Kill]) -> None:
        """Show the current state of things."""
        if self.quiet:
            return
        if self._live:
            self._live.update(self._panel(snapshot, kills))
            return
        for kill in kills[self._told :]:
            self.console.print(f"{self._clock()}  {describe(kill)}", soft_wrap=True)
        self._told = len(kills)
        if time.monotonic() - self._last_line >= self.INTERVAL:
            self._last_line = time.monotonic()
            self.console.print(
                f"{self._clock()}  {'; '.join(summary(snapshot))}; killed: {killed(kills)}", soft_wrap=True
            )

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:5.1f} s"

    def _panel(self, snapshot: Snapshot, kills: list[Kill]) -> Group:
        bar = Table.grid(padding=(0, 1))
        done = f"{snapshot.closed}/{snapshot.orders} orders"
        bar.add_row(self._clock(), ProgressBar(total=snapshot.orders, completed=snapshot.closed, width=40), done)
        lines = [*(Text(f"  {line}") for line in summary(snapshot)), Text(f"  killed: {killed(kills)}", style="red")]
        lines += [Text(f"    {describe(kill)}", style="dim") for kill in kills[-4:]]
        return Group(bar, *lines)


def describe(kill: Kill) -> str:
    """One kill, in words."""
    whom = f"{kill.worker} with all its processes" if kill.kind == "worker" else f"a pool process of {kill.worker}"
    pairs = zip(kill.interrupted, kill.orders, strict=True)
    what = ", ".join(order if id_ == order else f"a parcel of {order}" for id_, order in pairs) or "nothing"
    return f"SIGKILL {whom} ({kill.pid}), in the middle of {what}"


def summary(snapshot: Snapshot) -> tuple[str, str]:
    """A snapshot, in words: the orders, and the books."""
    ends = f"{snapshot.invoiced} fulfilled, {snapshot.refused} refused, {snapshot.refunds} refunded"
    books = f"{snapshot.charges} charges, {snapshot.parcels} parcels, {snapshot.mails} mails"
    waiting = f"{snapshot.questions} wait for people"
    return f"{count(snapshot.submitted, 'order')}: {ends}, {waiting}", books


#: Columns that the table takes with all it has to say.
WIDE = 108


@dataclass(frozen=True)
class Line:
    """One line of the final table."""

    what: str
    figure: str
    #: Where the figure comes from.
    source: str
    #: Whether it is as it must be; ``None`` where it only informs.
    good: bool | None = None


def result_table(title: str, sections: list[list[Line]], width: int) -> Table:
    """The table at the end. On a console that is not ``width`` wide enough, it does without the sources."""
    wide = width >= WIDE
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    if wide:
        table.add_column("according to", style="dim")
    marks = {True: "[green]✓[/] ", False: "[bold red]✗[/] ", None: "  "}
    for section in sections:
        for line in section:
            table.add_row(marks[line.good] + line.what, line.figure, *([line.source] if wide else []))
        table.add_section()
    return table
