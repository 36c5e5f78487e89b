"""``durable doctor``."""

from __future__ import annotations

from typing import Any

import click

from celery_durable.codec.preview import printable

from .base import DurableCommand, json_option, open_desk, write_json
from .rendering import console_of, words, write

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "bold yellow", "error": "bold red"}


@click.command(cls=DurableCommand)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check settings, database and journal for what may go wrong.

    Exit code 1 where there is an error. Findings that durable_silence names are shown, but do not count.
    """
    from celery_durable import doctor as practice

    desk = open_desk(ctx, must_exist=False)
    # The modules of tasks that a worker would import: some checks look at each durable task.
    desk.app.loader.import_default_modules()
    patient = practice.Patient(desk.app)
    worst = practice.Severity.OK
    findings = []
    for finding in practice.examine(patient):
        if not finding.silenced and list(practice.Severity).index(finding.severity) > list(practice.Severity).index(
            worst
        ):
            worst = finding.severity
        if as_json:
            findings.append(
                {
                    "code": finding.code,
                    "topic": finding.topic,
                    "severity": finding.severity.value,
                    "silenced": finding.silenced,
                    "text": finding.text,
                    "cure": finding.cure,
                }
            )
        else:
            _print(ctx, finding)
    if as_json:
        write_json({"verdict": worst.value, "findings": findings})
    if worst is practice.Severity.ERROR:
        ctx.exit(1)


def _print(ctx: click.Context, finding: Any) -> None:
    console = console_of(ctx)
    verdict = "silenced" if finding.silenced else finding.severity.value
    line = words(f"{verdict:<9}", style=_STYLES.get(verdict, "dim"))
    line.append(f"{finding.code}  {finding.topic}", style="default")
    if finding.text:
        line.append(printable(f": {finding.text}"), style="default")
    write(console, line)
    if finding.cure and not finding.silenced:
        write(console, words(f"{'':<9}{finding.cure}"))
