"""What all commands share: how they find the journal, and how they fail."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from celery.bin.base import CeleryCommand

from celery_durable.codec.preview import printable
from celery_durable.errors import DurableError, JournalUnavailable, SchemaError, docs_url

from .plain_text import as_json_text, clean

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.runtime import Runtime
    from celery_durable.store.operations import Operations

__all__ = [
    "Desk",
    "DurableCommand",
    "Failure",
    "command_line",
    "json_option",
    "open_desk",
    "say",
    "tell",
    "who",
    "write_json",
]

F = TypeVar("F", bound=Callable[..., Any])

_HINT_UNAVAILABLE = (
    "Is the server up, does durable_database_url name the right place, and may this machine connect to it?"
)


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs; errors too.")(function)


class Failure(click.ClickException):
    """A command could not do what it was asked to.

    :param kind: class of the error, for programs.
    :param code: its stable code, where it has one.
    """

    def __init__(
        self, message: str, *, kind: str = "Failure", code: str | None = None, exit_code: int = 1, as_json: bool = False
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.exit_code = exit_code  # type: ignore[misc]
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it for a person, or a program."""
        if self.as_json:
            answer = {"error": self.kind, "code": self.code, "message": self.message}
            text = as_json_text({**answer, "docs": docs_url(self.code)} if self.code else answer)
        else:
            text = clean(f"Error: {f'[{self.code}] ' if self.code else ''}{self.message}")
        click.echo(text, file=file, err=True)


class DurableCommand(CeleryCommand):
    """A command whose errors are words instead of tracebacks, and with ``--json`` objects."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As usual; errors follow ``--json``."""
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not as_json:
                raise _cleaned(error) from None
            raise _usage(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """As usual; errors follow ``--json``."""
        as_json = bool(ctx.params.get("as_json"))
        from sqlalchemy import exc

        from celery_durable.store.server_errors import cause, is_refusal

        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not as_json:
                raise _cleaned(error) from None
            raise _usage(error) from None
        except Failure as failure:
            failure.as_json = as_json
            raise
        except DurableError as error:
            message = error.message
            if isinstance(error, JournalUnavailable) and not (error.__cause__ and is_refusal(error.__cause__)):
                message = f"{message}\n{_HINT_UNAVAILABLE}"
            raise Failure(message, kind=type(error).__name__, code=error.code, as_json=as_json) from error
        except exc.DBAPIError as error:
            message = f"the journal's database refused it: {cause(error)}"
            if isinstance(error, exc.OperationalError):
                message = f"{message}\n{_HINT_UNAVAILABLE}"
            raise Failure(message, kind="DatabaseError", as_json=as_json) from error
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        # A traceback would show a row's texts to a terminal as they are.
        except Exception as error:
            raise Failure(f"{type(error).__name__}: {error}", kind=type(error).__name__, as_json=as_json) from error


def _cleaned(error: click.UsageError) -> click.UsageError:
    error.message = clean(error.message)  # type: ignore[misc]
    return error


def _usage(error: click.UsageError) -> Failure:
    return Failure(error.format_message(), kind="UsageError", exit_code=error.exit_code, as_json=True)


@dataclass(frozen=True)
class Desk:
    """An application's journal, as a command needs it."""

    app: Celery
    runtime: Runtime
    operations: Operations

    @property
    def namespace(self) -> str:
        return self.runtime.settings.namespace


def open_desk(ctx: click.Context, *, must_exist: bool = True) -> Desk:
    """The journal of the application that ``celery -A`` names.

    :param must_exist: refuse a SQLite file that is not there, instead of creating an empty journal in the wrong folder.
    :raises ConfigurationError: when a ``durable_*`` setting is wrong.
    :raises SchemaError: when there is no journal.
    :raises click.UsageError: when no application was named.
    """
    from celery_durable.runtime import Runtime
    from celery_durable.settings import names_journal

    app = ctx.obj.app
    # Asked first: without settings, the application is one that Celery has made up, which can have no journal.
    if ctx.find_root().params.get("app", app) is None and not names_journal(app):
        raise click.UsageError("name your application: celery -A proj durable ...", ctx)
    runtime = Runtime.of(app)
    settings = runtime.settings
    database = runtime.database
    path = database.url.database
    if must_exist and database.dialect == "sqlite" and not database.in_memory and path and not path.startswith("file:"):
        full = os.path.abspath(path)
        if not os.path.exists(full):
            relative = "" if os.path.isabs(path) else f" (durable_database_url = {settings.database_url!r} is relative)"
            raise SchemaError(
                f"there is no journal at {full}{relative}. Either nothing durable has run yet, or the workers use "
                "another one: run this command with their configuration and in their folder. To create an empty "
                "journal: celery -A <your app> durable upgrade"
            )
    return Desk(app, runtime, runtime.operations)


def command_line(ctx: click.Context) -> str:
    """How this person calls us, for commands that we suggest."""
    app = ctx.find_root().params.get("app")
    if app is not None and not isinstance(app, str):
        # Before 5.7 Celery's option has turned the text into the application.
        app = _app_option(sys.argv)
    return f"celery -A {app} durable" if app else "celery durable"


def _app_option(words: Sequence[str]) -> str | None:
    for word, following in zip(words, (*words[1:], None), strict=True):
        if word in ("-A", "--app"):
            return following
        if word.startswith(("-A", "--app=")):
            return word.removeprefix("-A").removeprefix("--app=")
    return None


def write_json(value: Any) -> None:
    """One object, on a line of its own."""
    click.echo(as_json_text(value))


def tell(text: str) -> None:
    """What a command has done, in a line."""
    click.echo(printable(text))


def say(text: str) -> None:
    """A remark that is no result: it must not end up in a pipe."""
    click.echo(clean(text), err=True)


def who() -> str:
    """Who runs this command, for the journal."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
