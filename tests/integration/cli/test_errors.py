"""What ``celery durable`` says when it cannot do what it was asked to: whole messages, no tracebacks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.engine import make_url

from celery_durable.errors import docs_url
from celery_durable.runtime import Runtime
from tests.support.commands import Answer, run
from tests.support.databases import JournalDatabase

from .cli_app import build

USAGE = "Usage: durable {}\nTry 'durable {} --help' for help.\n\nError: "
UNREACHABLE = "Is the server up, does durable_database_url name the right place, and may this machine connect to it?"


@pytest.fixture
def app(database: JournalDatabase) -> Iterator[Celery]:
    app = build(database.conf)
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()


def call(app: Celery, task: str, task_id: str, *args: Any) -> None:
    app.tasks[task].apply(args, task_id=task_id)


def refused(answer: Answer) -> str:
    """What went to the standard error, where it belongs."""
    assert answer.out == ""
    return answer.err


def twice(app: Celery, *args: str, error: str, code: str, message: str) -> None:
    """The same refusal for people and for programs."""
    assert refused(run(app, *args, fails=1)) == f"Error: [{code}] {message}\n"
    answer = json.loads(refused(run(app, *args, "--json", fails=1)))
    assert answer == {"error": error, "code": code, "message": message, "docs": docs_url(code)}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("command", ["show", "resume", "cancel"])
def test_an_unknown_id(app: Celery, command: str):
    message = "there is no execution 'nobody' in namespace 'clitest'. See what there is: celery durable list"
    twice(app, command, "nobody", error="UnknownExecution", code="CD003", message=message)


@pytest.mark.databases("sqlite")
def test_a_wrong_state(app: Celery):
    call(app, "nothing", "done-1")
    call(app, "failing", "failed-1")
    call(app, "order", "doubt-1", 1)
    state = {"error": "WrongState", "code": "CD004"}
    twice(
        app, "resolve", "done-1", "0", "--run", **state,
        message="execution done-1 is completed; only steps of ambiguous executions can be resolved. It has ended.",
    )  # fmt: skip
    twice(
        app, "resolve", "failed-1", "--run", **state,
        message=(
            "execution failed-1 is failed; only steps of ambiguous executions can be resolved. It has ended; celery "
            "durable resume continues it where it stopped."
        ),
    )  # fmt: skip
    twice(
        app, "resume", "done-1", **state,
        message="execution done-1 is completed; only ambiguous, quarantined and failed ones can be resumed. It has "
        "ended.",
    )  # fmt: skip
    twice(
        app, "cancel", "done-1", **state,
        message="execution done-1 is completed already; there is nothing to cancel.",
    )  # fmt: skip
    twice(
        app, "resolve", "doubt-1", "0", "--run", **state,
        message="the step at position 0 of execution doubt-1 is not in doubt. In doubt: 1 (charge). See: celery "
        "durable show doubt-1",
    )  # fmt: skip
    twice(
        app, "resolve", "doubt-1", "1.0/7", "--run", **state,
        message="the step at position 1.0/7 of execution doubt-1 is not in doubt. In doubt: 1 (charge). See: celery "
        "durable show doubt-1",
    )  # fmt: skip
    run(app, "resume", "doubt-1")
    twice(
        app, "resume", "doubt-1", **state,
        message="execution doubt-1 is pending; only ambiguous, quarantined and failed ones can be resumed. It ran "
        "eagerly: nothing brings it back by itself. It continues where it stopped when task order is called again "
        "like this: apply(..., task_id='doubt-1').",
    )  # fmt: skip


@pytest.mark.databases("sqlite")
def test_a_resolution_that_says_nothing_or_the_wrong_thing(app: Celery):
    call(app, "order", "doubt-1", 1)
    call(app, "pair", "doubt-2", 2, 3)
    usage = USAGE.format("resolve [OPTIONS] ID [POSITION]", "resolve")

    def complaint(*args: str) -> str:
        answer = refused(run(app, "resolve", *args, fails=2))
        assert answer.startswith(usage), answer
        as_json = json.loads(refused(run(app, "resolve", *args, "--json", fails=2)))
        assert as_json == {"error": "UsageError", "code": None, "message": answer[len(usage) : -1]}
        return answer[len(usage) : -1]

    one_of = "say what happened to the step, with one of --value JSON, --run and --fail [MESSAGE]"
    assert complaint("doubt-1", "1") == one_of
    assert complaint("doubt-1", "1", "--run", "--value", "1") == one_of
    assert complaint("doubt-1", "1", "--run", "--fail") == one_of
    assert complaint("doubt-1", "1", "--run", "--as", "json") == "--as says what --value is; there is no --value"
    assert complaint("doubt-1", "one", "--run") == ("'one' is no position; positions look like 2, or 4.0/1 in a branch")
    assert complaint("doubt-1", "--fail", "1") == "is '1' a position or a message? A position comes before --fail"
    assert complaint("doubt-2", "--run") == ("2 steps are in doubt, say which POSITION: 0.1/0 (charge), 0.2/0 (charge)")
    assert complaint("doubt-1", "1", "--value", "{id: 1}") == (
        "--value is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). Text needs "
        "its quotes: --value '\"text\"'; no value is: --value null"
    )
    receipt = "tests.integration.cli.cli_app.Receipt"
    assert complaint("doubt-1", "1", "--value", '{"id": "r1", "sum": 1}') == (
        f"--value does not fit {receipt}, which step 'charge' returns: value: {receipt} has no field 'sum'; it has "
        "id, total. (--as json stores it as it is)"
    )
    assert complaint("doubt-1", "1", "--value", '{"id": 1, "total": "9.99"}') == (
        f"--value does not fit {receipt}, which step 'charge' returns: value.id: expected text (\"...\"), not 1. (--as "
        "json stores it as it is)"
    )
    assert complaint("doubt-1", "1", "--value", "1", "--as", "Receipt") == (
        "--as Receipt: it looks like module:Class, or json"
    )
    assert complaint("doubt-1", "1", "--value", "1", "--as", "decimal:Decimals") == (
        "--as decimal:Decimals: module 'decimal' has no 'Decimals'"
    )
    assert run(app, "show", "doubt-1", "--json").json["state"] == "ambiguous"


@pytest.mark.databases("sqlite")
def test_a_command_that_is_written_wrongly(app: Celery):
    call(app, "nothing", "done-1")
    assert refused(run(app, "show", "done-1", "--generation", "7", fails=2)).endswith(
        "Error: execution done-1 has no generation 7; it has 1\n"
    )
    assert json.loads(refused(run(app, "show", "--json", fails=2))) == {
        "error": "UsageError", "code": None, "message": "Missing argument 'ID'.",
    }  # fmt: skip
    answer = refused(run(app, "list", "--state", "dead", fails=2))
    assert "Invalid value for '--state': 'dead' is not one of 'pending', 'running', " in answer
    assert "Did you mean" in refused(run(app, "lits", fails=2))


@pytest.mark.databases("postgresql", "mysql")
def test_tables_that_are_missing(database: JournalDatabase):
    app = build(database.conf)
    where = make_url(database.url).render_as_string()
    message = f"the journal's tables are missing in {where}. Create them with: celery -A <your app> durable upgrade"
    for command in (("list",), ("show", "x"), ("resume", "x"), ("cancel", "x")):
        twice(app, *command, error="SchemaError", code="CD002", message=message)
    assert refused(run(app, "service", fails=1)) == f"Error: [CD002] {message}\n"
    Runtime.of(app).end()


def test_a_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty journal in the wrong folder would say that all is well."""
    monkeypatch.chdir(tmp_path)
    cure = (
        "Either nothing durable has run yet, or the workers use another one: run this command with their "
        "configuration and in their folder. To create an empty journal: celery -A <your app> durable upgrade"
    )
    message = (
        f"there is no journal at {tmp_path}/celery-durable.db (durable_database_url = 'sqlite:///celery-durable.db' is "
        f"relative). {cure}"
    )
    twice(build(), "list", error="SchemaError", code="CD002", message=message)
    absolute = build(durable_database_url=f"sqlite:///{tmp_path}/x.db")
    twice(
        absolute,
        "show",
        "x",
        error="SchemaError",
        code="CD002",
        message=f"there is no journal at {tmp_path}/x.db. {cure}",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.databases("postgresql", "mysql")
def test_a_database_that_does_not_answer(database: JournalDatabase):
    url = make_url(database.url).set(host="127.0.0.1", port=1, query={})
    app = build(durable_database_url=url.render_as_string(hide_password=False), durable_ack_timeout=0.3)
    shown = url.render_as_string()
    for command in (("list",), ("show", "x"), ("resume", "x"), ("cancel", "x")):
        text = refused(run(app, *command, fails=1))
        assert text.startswith(f"Error: [CD501] the journal's database ({shown}) did not ")
        assert text.endswith(f"\n{UNREACHABLE}\n")
        as_json = json.loads(refused(run(app, *command, "--json", fails=1)))
        assert (as_json["error"], as_json["code"]) == ("JournalUnavailable", "CD501")
    text = refused(run(app, "upgrade", fails=1))
    assert text.startswith("Error: the journal's database refused it: OperationalError: ")
    assert text.endswith(f"\n{UNREACHABLE}\n")
    Runtime.of(app).end()


@pytest.mark.databases("postgresql")
def test_a_user_without_rights(database: JournalDatabase):
    app = build(database.conf)
    run(app, "upgrade")
    call(app, "order", "doubt-1", 1)
    reader_name = f"durable_reader_{secrets.token_hex(4)}"  # roles belong to the whole server
    with database.engine().begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {reader_name} LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader_name}")
    try:
        url = make_url(database.url).update_query_dict({"options": f"-c role={reader_name}"})
        reader = build(durable_database_url=url.render_as_string(hide_password=False))
        assert run(reader, "show", "doubt-1", "--json").json["state"] == "ambiguous"
        refusal = refused(run(reader, "cancel", "doubt-1", fails=1))
        assert refusal.startswith("Error: [CD501] the journal's database (postgresql+psycopg://")
        # The server is up, the name is right: that is not what it says to look at.
        assert refusal.endswith(
            ") refuses a statement: InsufficientPrivilege: permission denied for table durable_execution\n"
        )
        Runtime.of(reader).end()
    finally:
        Runtime.of(app).end()
        with database.engine().begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {reader_name}")
            connection.exec_driver_sql(f"DROP ROLE {reader_name}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"durable_databse_url": "sqlite:///x.db"},
            "unknown setting durable_databse_url. Did you mean durable_database_url?",
        ),
        (
            {"durable_lease_timeout": "long"},
            "durable_lease_timeout = 'long': it must be a number of seconds above 0.",
        ),
        (
            {"durable_database_url": "oracle://x"},
            "durable_database_url: 'oracle' cannot hold a journal; use sqlite, postgresql, mysql or mariadb.",
        ),
    ],
    ids=["unknown", "bad value", "other database"],
)
def test_a_setting_that_is_wrong(settings: dict[str, Any], message: str):
    twice(build(**settings), "list", error="ConfigurationError", code="CD001", message=message)
    assert refused(run(build(**settings), "service", fails=1)) == f"Error: [CD001] {message}\n"
