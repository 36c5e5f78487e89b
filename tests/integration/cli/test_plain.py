"""Whatever ids, names and errors hold: no command gives a terminal anything to obey, or shows a value unasked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery

import celery_durable
from celery_durable import DurableTask, Intent, OnAmbiguous, execution_parked, guarded, step
from celery_durable.cli.plain_text import PlainFormatter, as_json_text, clean
from celery_durable.runtime import Runtime
from celery_durable.store.records import EntryKind
from celery_durable.store.tables import executions, journal
from tests.support.commands import run

ESCAPE = "\x1b]0;owned\x07\x1b[31mRED\x1b[8m\x9b2J‮\r\nError: a line that is none"
SECRET = "4111111111111111"


class Weird(Exception):
    """Says what it should not."""


class Switch:
    """What the next attempt asks for."""

    amount = SECRET


@step(effect=guarded(Intent.CUSTOM, on_ambiguous=OnAmbiguous.FAIL))
def risky(card: str) -> None:
    raise Weird(f"remote said {ESCAPE} of {card}")


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.FAIL))
def pay(card: str, token: str = "") -> str:
    return "paid"


def undo(card: str) -> None:
    raise Weird(f"{card} {ESCAPE}")


def build(**settings: Any) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(durable_database_url="sqlite://", durable_ack_timeout=20, durable_lease_timeout=60, **settings)
    tasks = {
        "doubt": lambda self, card: risky(card),
        "undone": lambda self, card: (self.durable.on_failure(undo, card), 1 / 0),
        "drifts": lambda self, card: (self.durable.step("first", str, Switch.amount), pay(Switch.amount), 1 / 0),
        "fails": lambda self, card: (_ for _ in ()).throw(Weird(f"{card} {ESCAPE}")),
        "done": lambda self, card: self.durable.step(f"name{ESCAPE}", lambda: card),
        "gives": lambda self, card: pay("card", self.durable.promise("approval").token),
    }
    for name, body in tasks.items():
        body.__name__ = name
        app.task(body, base=DurableTask, bind=True, name=name, shared=False)
    return app


@pytest.fixture
def app() -> Iterator[Celery]:
    made = build()
    yield made
    Runtime.of(made).end()


def call(app: Celery, name: str, task_id: str) -> None:
    app.tasks[name].apply((SECRET,), task_id=task_id)


def conflict(app: Celery) -> None:
    Switch.amount = SECRET
    call(app, "drifts", "drifts")
    Switch.amount = "4222222222222222"
    run(app, "resume", "drifts")
    call(app, "drifts", "drifts")
    assert celery_durable.get("drifts", app).status().state == "ambiguous"


COMMANDS = [
    ("list",),
    ("list", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    *[
        (command, name, *options)
        for name in ("doubt", "undone", "fails", "done", "drifts")
        for command, options in (
            ("show", ()),
            ("show", ("--reveal",)),
            ("show", ("--json",)),
            ("show", ("--json", "--reveal")),
        )
    ],
    *[("show", f"other{ESCAPE}"), ("cancel", f"other{ESCAPE}")],
    *[("show", f"none{ESCAPE}"), ("cancel", f"none{ESCAPE}"), ("resolve", f"none{ESCAPE}", "0", "--run")],
    ("promise", "list", f"none{ESCAPE}"),
    ("promise", "resolve", f"none{ESCAPE}", "--token", ESCAPE),
    ("list", f"--{ESCAPE}"),
    ("resolve", "doubt", ESCAPE, "--run"),
    ("rerun", "done", "--from", ESCAPE),
    ("promise", "list", "done"),
]


def test_no_terminal_escape_reaches_the_output(app: Celery) -> None:
    for name in ("doubt", "undone", "fails", "done"):
        call(app, name, name)
    conflict(app)
    # What a publisher chooses, or somebody who can write to the database.
    write = Runtime.of(app).database.write
    write(lambda c: c.execute(sa.update(executions).where(executions.c.id == "done").values(task=f"t{ESCAPE}")))
    call(app, "done", "other")
    changed = {"id": f"other{ESCAPE}", "state": "suspended"}
    write(lambda c: c.execute(sa.update(executions).where(executions.c.id == "other").values(changed)))
    for args in COMMANDS:
        answer = said(app, *args)
        for text in (answer.out, answer.err):
            assert not [c for c in text if not (c.isprintable() or c == "\n")], (args, text)
            assert not any(line.startswith("Error: a line") for line in text.splitlines()), args
    assert SECRET in said(app, "show", "doubt", "--reveal").out, "who asks is shown"


def said(app: Celery, *args: str) -> Any:
    for code in (0, 1, 2):
        try:
            return run(app, *args, fails=code)
        except AssertionError as error:
            last = error
    raise last


def test_no_value_is_shown_logged_or_sent_unasked(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def listen(sender: Any, reason: str, **_: Any) -> None:
        told.append(reason)

    execution_parked.connect(listen, weak=False, dispatch_uid="plain")
    try:
        with caplog.at_level(logging.ERROR, logger="celery_durable"):
            call(app, "doubt", "doubt")
            call(app, "undone", "undone")
            conflict(app)
    finally:
        execution_parked.disconnect(dispatch_uid="plain")
    assert len(told) == 3
    handles = [celery_durable.get(name, app).status() for name in ("doubt", "undone", "drifts")]
    shown = [said(app, "show", name, *more).out for name in ("doubt", "undone", "drifts") for more in ((), ("--json",))]
    for text in [*told, *(r.getMessage() for r in caplog.records), *(str(h.reason) for h in handles), *shown]:
        assert SECRET not in text
        assert "4222" not in text
        assert "remote said" not in text
    for name in ("doubt", "undone", "drifts"):
        revealed = said(app, "show", name, "--reveal").out
        assert SECRET in revealed, name
    assert "4222222222222222" in said(app, "show", "drifts", "--reveal").out, "both are shown to who compares them"


def intents(app: Celery) -> str:
    def read(connection: Any) -> list[bytes]:
        query = sa.select(journal.c.payload).where(journal.c.kind == int(EntryKind.INTENT))
        return list(connection.execute(query).scalars())

    return b"\n".join(map(bytes, Runtime.of(app).database.read(read))).decode()


def test_a_setting_keeps_previews_out_of_the_journal() -> None:
    app = build(durable_previews=False)
    conflict(app)
    assert SECRET not in intents(app)
    assert "arguments " in said(app, "show", "drifts", "--reveal").out
    Runtime.of(app).end()


def test_a_preview_never_shows_a_token(tmp_path: Path) -> None:
    app = build(durable_secret="a secret of the application's")
    call(app, "gives", "gives")
    [row] = Runtime.of(app).promises.of([celery_durable.get("gives", app)._row().pk])
    token = Runtime.of(app).tokens.mint(row.known_as)[1]
    text = intents(app)
    assert "'card'" in text
    assert not [part for part in (token[:20], token[-20:]) if part in text]
    assert "***" in text
    Runtime.of(app).end()


def test_text_stays_text() -> None:
    assert clean("Zoë\N{ROCKET}\n2") == "Zoë\N{ROCKET}\n2"
    assert clean(ESCAPE).startswith("\\x1b]0;owned\\x07\\x1b[31mRED")
    assert as_json_text({"a": ESCAPE}).isprintable()
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s[%s]", ("t", ESCAPE), None)
    assert "\x1b" not in PlainFormatter(logging.Formatter()).format(record)
