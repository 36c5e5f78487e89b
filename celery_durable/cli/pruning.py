"""``durable prune``."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from celery_durable.retention.pruner import Measure, Pruner, Scales
from celery_durable.retention.rules import Rules
from celery_durable.store.records import FINAL_STATES, State
from celery_durable.store.retention import RetentionStore

from .base import Desk, DurableCommand, json_option, open_desk, say, tell, write_json
from .rendering import amount

__all__ = ["prune"]

_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")
#: How often a person hears how far it is, in seconds.
_NEWS: Final = 10.0
#: Larger than every key.
_ALL: Final = (1 << 63) - 1


class Duration(click.ParamType[int]):
    """A number with a unit; milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(
                f"{value!r} is no duration; write a number and a unit, such as {', '.join(f'7{u}' for u in _UNITS)}"
            )
        return int(float(match[1]) * _UNITS[match[2]] * 1000)


@click.command(cls=DurableCommand)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option(
    "--older-than",
    type=Duration(),
    metavar="DURATION",
    help="Executions that ended longer ago than this, such as 36h or 7d.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(sorted(s.value for s in FINAL_STATES)),
    help="Only executions that ended in this state; may be given several times.",
)
@json_option
@click.pass_context
def prune(ctx: click.Context, dry_run: bool, older_than: int | None, states: Sequence[str], as_json: bool) -> None:
    """Remove journal and payloads of executions that have ended, and tombstones whose time is over.

    Without --older-than: what durable_retention, durable_retention_count and durable_retention_bytes say. Workers do
    that by themselves.
    """
    desk = open_desk(ctx)
    chosen = {State(state) for state in states} or FINAL_STATES
    rules = Rules.of(desk.runtime.settings)
    if older_than is not None:
        rules = dataclasses.replace(rules, ages=dict.fromkeys(FINAL_STATES, older_than), limits=())
    elif not rules.active:
        raise click.UsageError(
            "say how old: --older-than 30d. (Without it, the settings durable_retention, durable_retention_count and "
            "durable_retention_bytes apply, and none of them is set.)"
        )
    store = RetentionStore(desk.runtime.database, namespace=desk.namespace)
    scales = Scales(store)
    over = {state: pk for state, pk in _over(store, rules, scales).items() if state in chosen}
    rules = dataclasses.replace(rules, ages={state: age for state, age in rules.ages.items() if state in chosen})
    pruner = Pruner(store, rules, scales=scales, dry=dry_run)
    _work(pruner, over)
    _report(desk, pruner, dry_run, as_json)


def _over(store: RetentionStore, rules: Rules, scales: Scales) -> dict[State, int]:
    measure = Measure()
    while rules.limits and measure.advance(store, rules.limits, scales):
        pass
    return measure.over(rules.limits)


def _work(pruner: Pruner, over: dict[State, int]) -> None:
    cursor = 0
    told = time.monotonic()

    def arrive(pk: int) -> None:
        nonlocal cursor
        cursor = pk

    while True:
        begin = time.monotonic()
        if not pruner.walk(cursor, _ALL, over, arrive, thorough=True):
            return
        now = time.monotonic()
        if now - told > _NEWS:
            told = now
            say(f"{sum(pruner.pruned.values())} so far ...")
        # The others' turn.
        time.sleep(min(now - begin, 1.0))


def _report(desk: Desk, pruner: Pruner, dry_run: bool, as_json: bool) -> None:
    counts = {state.value: pruner.pruned[state] for state in sorted(FINAL_STATES)}
    if as_json:
        write_json({"dry_run": dry_run, "pruned": counts, "bytes": pruner.freed, "forgotten": pruner.forgotten})
        return
    total = sum(counts.values())
    parts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    which = f" ({parts})" if parts else ""
    would = "would be " if dry_run else ""
    tell(
        f"Namespace {desk.namespace!r}: {total} execution{'' if total == 1 else 's'} {would}pruned{which}, about "
        f"{amount(pruner.freed)}; {pruner.forgotten} tombstone{'' if pruner.forgotten == 1 else 's'} {would}removed."
    )
