"""The manual's page on the command line lists what there is."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from celery_durable.cli import durable
from celery_durable.cli.rendering import STATE_STYLES
from celery_durable.journal.timeline import StepOutcome

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
#: Whatever stands as code in the first cell of a table.
LISTED = {
    word for line in PAGE.splitlines() if line.startswith("| ") for word in re.findall(r"`([^`]+)`", line.split("|")[1])
}


def test_every_outcome_is_explained():
    outcomes = {outcome.value for outcome in StepOutcome}
    assert outcomes <= LISTED
    assert outcomes - {"failed", "to run"} <= set(STATE_STYLES)


@pytest.mark.parametrize("name", durable.commands)
def test_every_command_and_option_is_explained(name: str):
    assert f"\n## {name}" in PAGE or f"and {name}" in PAGE
    options = {o for p in durable.commands[name].params if isinstance(p, click.Option) for o in p.opts if o != "-l"}
    assert [o for o in options if o not in PAGE] == []
