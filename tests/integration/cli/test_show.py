"""What ``durable list`` and ``durable show`` print, on every database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_durable.codec import Codec
from celery_durable.runtime import Runtime
from celery_durable.store.records import EntryKind
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger

from .cli_app import Switch, build

CURE = """\
                The body changed, or does not ask for the same steps each time. Wrap what varies (time, random numbers, reads)
                in a step, or keep old executions on the old path with self.durable.patched("...").
"""  # noqa: E501


@pytest.fixture
def app(database: JournalDatabase, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """The application, its journal empty."""
    for name, value in ledger.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Switch, "version", "a")
    app = build(database.conf)
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()


def call(app: Celery, task: str, task_id: str, *args: Any) -> None:
    app.tasks[task].apply(args, task_id=task_id)


def park_a_conflict(app: Celery) -> None:
    call(app, "changing", "conflict-1", 4)
    Switch.version = "b"
    run(app, "resume", "conflict-1")
    call(app, "changing", "conflict-1", 4)


def key_of(app: Celery, task_id: str, position: str, *args: str) -> str:
    steps = run(app, "show", task_id, "--json", *args).json["steps"]
    [key] = [s["key"] for s in steps if s["position"] == position]
    assert len(bytes.fromhex(key)) == 32
    return str(key)


def test_executions_are_listed(app: Celery):
    call(app, "nothing", "ok-1", 1)
    call(app, "failing", "bad-1")
    call(app, "nothing", "ok-2", 2)
    call(app, "order", "doubt-1", 9)
    assert run(app, "list").text == (
        "id       task     state      attempts  steps  created                  updated\n"
        "doubt-1  order    ambiguous         0      1  TIME  TIME\n"
        "ok-2     nothing  completed         0      1  TIME  TIME\n"
        "bad-1    failing  failed            0      1  TIME  TIME\n"
        "ok-1     nothing  completed         0      1  TIME  TIME\n"
    )

    rows = run(app, "list", "--json").rows
    assert [r["id"] for r in rows] == ["doubt-1", "ok-2", "bad-1", "ok-1"]
    assert list(rows[0]) == [
        "id", "task", "state", "attempts", "retries", "generation", "steps", "created_at", "updated_at", "wake_at",
        "pruned_at", "waits_for",
    ]  # fmt: skip
    assert rows[0]["created_at"].endswith("+00:00")
    assert rows[0]["created_at"] <= rows[0]["updated_at"]

    def ids(*args: str) -> list[str]:
        return [r["id"] for r in run(app, "list", "--json", *args).rows]

    assert ids("--state", "completed", "--state", "failed") == ["ok-2", "bad-1", "ok-1"]
    assert ids("--task", "nothing") == ["ok-2", "ok-1"]
    assert ids("--task", "nothing", "--state", "failed") == []
    assert ids("--limit", "2") == ["doubt-1", "ok-2"]

    short = run(app, "list", "--limit", "3")
    assert [line.split()[0] for line in short.out.splitlines()] == ["id", "doubt-1", "ok-2", "bad-1"]
    assert short.err == "There are more than these 3: --limit 30\n"
    assert run(app, "list", "--limit", "4").err == ""
    none = run(app, "list", "--task", "no.such")
    assert (none.out, none.err) == ("", "No executions that match in namespace 'clitest'.\n")


def test_a_long_list_is_read_page_by_page(app: Celery, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("celery_durable.cli.listing._PAGE", 2)
    for number in range(5):
        call(app, "nothing", f"n{number}")
    assert [r["id"] for r in run(app, "list", "--json").rows] == ["n4", "n3", "n2", "n1", "n0"]
    assert [r["id"] for r in run(app, "list", "--json", "--limit", "3").rows] == ["n4", "n3", "n2"]


def test_every_kind_of_step_is_shown(app: Celery):
    call(app, "several", "several-1")
    assert run(app, "show", "several-1").text == (
        "Execution several-1\n"
        "  task        several\n"
        "  namespace   clitest\n"
        "  state       completed\n"
        "  created     TIME\n"
        "  updated     TIME\n"
        "  take-overs  0\n"
        "  retries     0\n"
        "  outcome     hidden (--reveal)\n"
        "  patches     greeting\n"
        "\n"
        "position  step                  effect      outcome  tries  duration  key\n"
        "0         hello                 idempotent  done         1 TOOK\n"
        "1         tried                 idempotent  done         2 TOOK\n"
        "2         broken                idempotent  failed       1 TOOK\n"
        "3         parallel, 2 branches              ended\n"
        "3.0/0     left                  idempotent  done         1 TOOK\n"
        "3.1/0     right                 idempotent  done         1 TOOK\n"
        "4         bye                   idempotent  done         1 TOOK\n"
        "\n"
        "1  tried\n"
        "  TIME  failed try, try 1, after TOOK\n"
        "  TIME  result, try 2, after TOOK\n"
        "\n"
        "2  broken\n"
        "  TIME  error, try 1, after TOOK\n"
    )

    shown = run(app, "show", "several-1", "--json").json
    assert [(s["position"], s["name"], s["effect"], s["outcome"], s["attempts"]) for s in shown["steps"]] == [
        ("0", "hello", "idempotent", "done", 1),
        ("1", "tried", "idempotent", "done", 2),
        ("2", "broken", "idempotent", "failed", 1),
        ("3.0/0", "left", "idempotent", "done", 1),
        ("3.1/0", "right", "idempotent", "done", 1),
        ("4", "bye", "idempotent", "done", 1),
    ]
    assert all(s["key"] is None and s["duration_ms"] > 0 for s in shown["steps"])
    assert shown["scopes"] == [{"position": "3", "branches": 2, "ended": True}]
    assert (shown["patches"], shown["generation"]) == (["greeting"], 1)
    assert shown["outcome"] == {"kind": "value"}


def test_values_are_shown_on_request(app: Celery):
    call(app, "several", "several-1")
    revealed = run(app, "show", "several-1", "--reveal").text
    assert '  outcome     "the secret result"\n' in revealed
    assert (
        "\n1  tried\n"
        '  TIME  failed try, try 1, after TOOK  {"type": "ConnectionError", "message": "password=hunter2"}\n'
        '  TIME  result, try 2, after TOOK  "x"\n'
        "\n2  broken\n"
        '  TIME  error, try 1, after TOOK  {"type": "ValueError", "message": "invalid literal for int() with base 10: '
        "'no number'\"}\n"
    ) in revealed

    shown = run(app, "show", "several-1", "--reveal", "--json").json
    assert [s.get("value") for s in shown["steps"]] == ["SECRET WORD", "x", None, 2, 3, "bye"]
    assert shown["steps"][2]["error"]["type"] == "ValueError"
    assert shown["outcome"] == {"kind": "value", "value": "the secret result"}

    call(app, "failing", "failing-1")
    assert "  outcome     ValueError: hidden (--reveal)\n" in run(app, "show", "failing-1").text
    assert "  outcome     ValueError: the secret message\n" in run(app, "show", "failing-1", "--reveal").text
    assert run(app, "show", "failing-1", "--json").json["outcome"] == {"kind": "error", "type": "ValueError"}


def test_nothing_is_revealed_without_being_asked_for(app: Celery):
    for task, task_id, args in (
        ("several", "several-1", ()),
        ("failing", "failing-1", ()),
        ("order", "order-1", (1,)),
        ("pair", "pair-1", (2, 3)),
    ):
        call(app, task, task_id, *args)
    park_a_conflict(app)
    executions = ("several-1", "failing-1", "order-1", "pair-1", "conflict-1")
    secrets = ("secret", "SECRET", "hunter2", "4111", "noon", "evening", "no number")

    def seen(*args: str) -> set[str]:
        texts = [run(app, "show", task_id, *more, *args).out for task_id in executions for more in ((), ("--json",))]
        # The earlier generation of the conflict has arguments of its own.
        texts += [run(app, "show", "conflict-1", "--generation", "1", *args).out]
        return {secret for secret in secrets if any(secret in text for text in texts)}

    assert seen() == set()
    # They do not even leave the database.
    rows = Runtime.of(app).operations.entries(Runtime.of(app).operations.get("several-1").pk, 1, values=False)
    assert {row.kind for row in rows if row.payload is not None} == {EntryKind.SCOPE_END}
    assert seen("--reveal") == set(secrets)


def test_a_step_in_doubt_is_shown_with_what_to_do(app: Celery):
    call(app, "order", "order-1", 1)
    key = key_of(app, "order-1", "1")
    assert run(app, "show", "order-1").text == (
        "Execution order-1\n"
        "  task        order\n"
        "  namespace   clitest\n"
        "  state       ambiguous\n"
        "  why         step 'charge' (position 1): its operation raised GatewayTimeout, which may hide a success\n"
        "  created     TIME\n"
        "  updated     TIME\n"
        "  take-overs  0\n"
        "  retries     0\n"
        "\n"
        "position  step    effect      outcome   tries  duration  key\n"
        "0         load    idempotent  done          1 TOOK\n"
        f"1         charge  guarded     in doubt      1 TOOK  {key}\n"
        "\n"
        "1  charge\n"
        "  TIME  intent, try 1\n"
        "  TIME  audit: left to an operator; raised: GatewayTimeout\n"
        "\n"
        "Step 'charge' at position 1 waits for you: its operation raised GatewayTimeout, which may hide a success.\n"
        f"Look for its idempotency key on the remote side: {key}\n"
        "  celery durable resolve order-1 1 --value JSON    it happened, and this is its result\n"
        "  celery durable resolve order-1 1 --run           it did not happen: run it\n"
        "  celery durable resolve order-1 1 --fail          raise AmbiguousEffect in the body\n"
    )
    step = run(app, "show", "order-1", "--json").json["steps"][1]
    assert [e["entry"] for e in step["history"]] == ["intent", "audit"]
    assert step["doubt"] == "its operation raised GatewayTimeout, which may hide a success"
    revealed = run(app, "show", "order-1", "--json", "--reveal").json
    assert revealed["steps"][1]["history"][0]["content"] == {"arguments": "(1, '4111')", "named": False}
    assert revealed["reason"] == (
        "guarded step 'charge' (position 1) of execution order-1 raised GatewayTimeout. That may hide a success, "
        "so it is not tried again. If GatewayTimeout always means that nothing happened, declare it: guarded(..., "
        f"definite=(GatewayTimeout,)). Look at the remote side (idempotency key {key}), then: celery durable resolve "
        "order-1 1 --value JSON | --run | --fail\nGatewayTimeout: no answer for card 4111"
    )


def test_a_conflict_is_shown_with_the_generation_that_it_is_with(app: Celery):
    park_a_conflict(app)
    key, rival = key_of(app, "conflict-1", "1"), key_of(app, "conflict-1", "1", "--generation", "1")
    text = run(app, "show", "conflict-1").text
    ended = (
        "    1 ended   [CD101] execution conflict-1 diverged from its journal at position 0: another step was "
        "recorded.\n"
        "                recorded   first (idempotent), arguments "
    )
    assert "  generation  2 of 1, 2\n" + ended in text
    assert CURE in text
    assert text.endswith(
        "\n1  pay\n"
        "  TIME  audit: conflict: generation 1 ran it under other arguments; left to an operator\n"
        "\n"
        "Step 'pay' at position 1 waits for you: generation 1 ran it already, under other arguments.\n"
        f"Look for its idempotency key on the remote side: {key}\n"
        f"In generation 1 it had this one: {rival}\n"
        "  celery durable resolve conflict-1 1 --value JSON    both are the same: continue with this result\n"
        "  celery durable resolve conflict-1 1 --run           this is another one: run it too\n"
        "  celery durable resolve conflict-1 1 --fail          raise AmbiguousEffect in the body\n"
    )
    first = run(app, "show", "conflict-1", "--generation", "1", "--json").json
    assert [(s["name"], s["outcome"]) for s in first["steps"]] == [("first", "done"), ("pay", "done")]
    assert first["reason"] == "step 'pay' (position 1): generation 1 ran it already, under other arguments"
    assert [g["generation"] for g in first["generations"]] == [1, 2]
    assert "waits for you" not in run(app, "show", "conflict-1", "--generation", "1").out


def test_checkpoints_are_unfolded(app: Celery, database: JournalDatabase):
    tight = build(database.conf, durable_max_steps=20)
    call(tight, "many", "many-1", 20)
    Runtime.of(tight).end()
    with Runtime.of(app).database.engine.connect() as connection:
        kinds = connection.exec_driver_sql("SELECT kind FROM durable_journal").scalars().all()
    assert 13 in kinds, "nothing was folded"
    shown = run(app, "show", "many-1", "--reveal", "--json").json
    assert [s["value"] for s in shown["steps"]] == [str(n) for n in range(20)]
    assert [s["position"] for s in shown["steps"]] == [str(n) for n in range(20)]


@pytest.mark.databases("sqlite")
def test_every_field_is_explained_in_the_manual(app: Celery):
    call(app, "several", "several-1")
    manual = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in manual.splitlines() if line.startswith("| ")]
    explained = set(re.findall(r"`([^`]+)`", " ".join(cells)))
    shown = run(app, "show", "several-1", "--json", "--reveal").json
    fields = {*run(app, "list", "--json").rows[0], *shown, *(name for step in shown["steps"] for name in step)}
    assert fields - explained == set()


@pytest.mark.databases("sqlite")
def test_what_cannot_be_read_is_said_and_hides_nothing_else(app: Celery):
    call(app, "several", "several-1")
    broken = json.dumps({"~": ["dataclass", "no.such:Thing", {}]}).encode()
    with Runtime.of(app).database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE durable_journal SET payload = ? WHERE position = 4", (broken,))
        connection.exec_driver_sql("UPDATE durable_journal SET kind = 99 WHERE position = 1 AND entry = 1")
    assert Codec().encode(1).codec == 17  # the bytes above are in the form of today
    steps = run(app, "show", "several-1", "--reveal", "--json").json["steps"]
    assert [s["outcome"] for s in steps] == ["done", "unreadable", "failed", "done", "done", "done"]
    assert steps[5]["value"]["unreadable"].startswith(
        "[CD401] this value cannot be read back from the journal: its class no.such.Thing cannot be found"
    )
    assert steps[1]["doubt"] == (
        "[CD403] position 1 of generation 1 has an entry of kind 99 and effect 1, which this version does not know. "
        "The journal was written by a newer version, or its row was changed from outside."
    )
    assert "unreadable" in run(app, "show", "several-1").out
