"""A run as people and programs read it: tables for the terminal and for documents, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .budget import Verdict
from .harness import Figure, Section, Spread

__all__ = ["Report"]

_HEAD = ("what", "times the reference", "quartiles", "median", "quartiles", "p99")
_BUDGET_HEAD = ("budget", "database", "measured", "limit", "")
_COLOURS = {True: "green", False: "bold red", None: "dim"}


def amount(value: float, unit: str) -> str:
    """A value with its unit, in three digits or so."""
    if unit == "s":
        size = abs(value)
        for factor, name in ((1.0, "s"), (1e-3, "ms")):
            if size >= factor:
                return f"{value / factor:.3g} {name}"
        return f"{value * 1e6:.3g} µs"
    if unit == "bytes":
        return f"{value / 1024:,.0f} KiB"
    if unit == "1/s":
        return f"{value:,.0f}/s"
    return f"{value:.3g} {unit}" if unit == "×" else f"{value:.2f}"


def _quartiles(spread: Spread, unit: str) -> str:
    return f"{amount(spread.low, unit)} – {amount(spread.high, unit)}"


class Report:
    """What a run came to.

    :param facts: about the machine, the databases, the peers.
    :param missing: what could not be measured → why.
    :param warnings: what makes the figures worth less.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        verdicts: Sequence[Verdict],
        *,
        facts: dict[str, Any],
        missing: dict[str, str],
        warnings: Sequence[str],
    ) -> None:
        self.sections = sections
        self.verdicts = verdicts
        self.facts = facts
        self.missing = missing
        self.warnings = warnings

    # -- cells -----------------------------------------------------------------------------------------------

    @staticmethod
    def _line(section: Section, figure: Figure) -> tuple[str, ...]:
        times, spread, several = section.times(figure), figure.spread, len(figure.rounds) > 1
        multiple = ("", "") if times is None else (amount(times.median, "×"), _quartiles(times, "×") if several else "")
        # Of fewer samples, it would be the largest one.
        tail = amount(figure.percentile(99), figure.unit) if len(figure.samples) >= 100 else ""
        around = _quartiles(spread, figure.unit) if several else ""
        return (figure.name, *multiple, amount(spread.median, figure.unit), around, tail)

    @staticmethod
    def _verdict(verdict: Verdict) -> tuple[str, ...]:
        row = verdict.row
        measured = "" if verdict.value is None else amount(verdict.value, verdict.unit)
        limit = f"{'≥' if row.at_least else '≤'} {amount(row.limit, verdict.unit)}"
        return (row.what, verdict.database, measured, limit, verdict.word)

    def _facts(self) -> list[str]:
        return [f"{topic}: {', '.join(f'{k} {v}' for k, v in facts.items())}" for topic, facts in self.facts.items()]

    # -- terminal --------------------------------------------------------------------------------------------

    def show(self, console: Console) -> None:
        """Print everything."""
        for section in self.sections:
            table = Table(*_HEAD, title=section.title, title_justify="left", title_style="bold")
            for column in table.columns[1:]:
                column.justify = "right"
            for figure in section.figures.values():
                table.add_row(*self._line(section, figure))
            console.print(table)
            for remark in section.remarks:
                console.print(f"  {remark}", style="dim", highlight=False)
            console.print()
        if self.verdicts:
            table = Table(*_BUDGET_HEAD, title="Budget", title_justify="left", title_style="bold")
            for verdict in self.verdicts:
                table.add_row(*self._verdict(verdict), style=_COLOURS[verdict.met])
            console.print(table)
        for line in self._facts():
            console.print(line, style="dim", highlight=False)
        for warning in self.warnings:
            console.print(f"WARNING: {warning}", style="bold yellow", highlight=False)
        for what, why in self.missing.items():
            console.print(f"NOT MEASURED: {what}: {why}", style="bold red", highlight=False, markup=False)

    # -- files -----------------------------------------------------------------------------------------------

    def markdown(self) -> str:
        """The same for a document."""
        lines = [f"* {line}" for line in self._facts()]
        lines += [f"* WARNING: {warning}" for warning in self.warnings]
        lines += [f"* NOT MEASURED: {what}: {why}" for what, why in self.missing.items()]
        if self.verdicts:
            lines += ["", "## Budget", "", *_table(_BUDGET_HEAD, [self._verdict(v) for v in self.verdicts])]
        for section in self.sections:
            rows = [self._line(section, figure) for figure in section.figures.values()]
            lines += ["", f"## {section.title}", "", *_table(_HEAD, rows)]
            lines += [line for remark in section.remarks for line in ("", remark)]
        return "\n".join(lines) + "\n"

    def write_json(self, path: Path) -> None:
        """Everything, unrounded: seconds, bytes, tasks or entries a second, commits."""
        content = {
            "facts": self.facts,
            "warnings": list(self.warnings),
            "missing": self.missing,
            "sections": [_section(section) for section in self.sections],
            "budget": [
                {
                    "what": verdict.row.what,
                    "database": verdict.database,
                    "value": verdict.value,
                    "limit": verdict.row.limit,
                    "at_least": verdict.row.at_least,
                    "unit": verdict.unit,
                    "met": verdict.met,
                }
                for verdict in self.verdicts
            ],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _section(section: Section) -> dict[str, Any]:
    figures = []
    for figure in section.figures.values():
        times = section.times(figure)
        figures.append(
            {
                "name": figure.name,
                "unit": figure.unit,
                **figure.spread._asdict(),
                "p50": figure.percentile(50),
                "p99": figure.percentile(99),
                "samples": len(figure.samples),
                "rounds": figure.per_round,
                "reference": section.references.get(figure.name),
                "times": None if times is None else times._asdict(),
            }
        )
    return {"suite": section.suite, "database": section.database, "remarks": section.remarks, "figures": figures}
