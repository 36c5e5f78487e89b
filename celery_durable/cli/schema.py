"""``durable upgrade`` and ``downgrade``: the journal's tables."""

from __future__ import annotations

from typing import Final

import click
import sqlalchemy as sa

from celery_durable.store.urls import shown

from .base import Desk, DurableCommand, Failure, json_option, open_desk, tell, write_json

__all__ = ["downgrade", "upgrade"]

_NO_TABLES: Final = "no tables"
#: The most executions that are counted.
_MOST: Final = 10_000

_sql_option = click.option("--sql", is_flag=True, help="Only print the statements, without connecting to the database.")


@click.command(cls=DurableCommand)
@click.option("--revision", default="head", show_default=True, help="Go to this revision.")
@_sql_option
@json_option
@click.pass_context
def upgrade(ctx: click.Context, revision: str, sql: bool, as_json: bool) -> None:
    """Create the journal's tables, or bring them to the revision that this version needs."""
    _move(open_desk(ctx, must_exist=False), "upgrade", revision, sql, as_json)


@click.command(cls=DurableCommand)
@click.argument("revision", metavar="REVISION")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_sql_option
@json_option
@click.pass_context
def downgrade(ctx: click.Context, revision: str, yes: bool, sql: bool, as_json: bool) -> None:
    """Take the journal's tables back to REVISION; `base` removes them, with everything in them."""
    desk = open_desk(ctx)
    if not sql and not yes:
        _ask(desk, revision)
    _move(desk, "downgrade", revision, sql, as_json)


def _move(desk: Desk, direction: str, revision: str, sql: bool, as_json: bool) -> None:
    from alembic.util import CommandError

    from celery_durable.store import migrations

    database = desk.runtime.database
    url = shown(database.url)
    if direction == "downgrade" and sql and ":" not in revision:
        revision = f"{migrations.head()}:{revision}"
    before = None if sql else migrations.current(database.engine)
    try:
        # Not over the engine: its waits are bound to durable_ack_timeout, a migration may take longer.
        move = migrations.upgrade if direction == "upgrade" else migrations.downgrade
        if sql:
            move(database.url.render_as_string(hide_password=False), revision, sql=True)
            return
        move(database.engine, revision)
    except CommandError as error:
        raise Failure(
            f"{error}. This version knows the revisions up to {migrations.head()}.", kind="SchemaError"
        ) from None
    after = migrations.current(database.engine)
    if as_json:
        write_json({"database": url, "from": before, "to": after})
    elif before == after:
        tell(f"The journal's tables in {url} are at revision {after or _NO_TABLES} already.")
    else:
        tell(f"The journal's tables in {url}: {before or _NO_TABLES} → {after or _NO_TABLES}.")


def _ask(desk: Desk, revision: str) -> None:
    from celery_durable.store.latest import count, namespaces
    from celery_durable.store.records import FINAL_STATES, State

    url = shown(desk.runtime.database.url)
    unfinished = [state for state in State if state not in FINAL_STATES]
    try:
        with desk.runtime.database.engine.connect() as connection:
            known = namespaces(connection)
            total = sum(count(connection, one, list(State), _MOST) for one in known)
            open_ones = sum(count(connection, one, unfinished, _MOST) for one in known)
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):
        total = open_ones = 0  # no tables, or others than ours: the migration itself will tell
    click.confirm(
        f"{url} holds {_many(total)} executions, {_many(open_ones)} of them unfinished. Going back to revision "
        f"{revision} may delete data. Continue?",
        abort=True,
        err=True,
    )


def _many(number: int) -> str:
    return str(number) if number < _MOST else f"{_MOST} or more"
