"""``celery durable prune``, and what the other commands say of what it has pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_durable.runtime import Runtime
from celery_durable.store.records import State
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.history import SECOND, History

from .cli_app import build

HOUR = 3600 * SECOND
DAY = 24 * HOUR


@pytest.fixture
def app(database: JournalDatabase) -> Iterator[Celery]:
    app = build(database.conf)
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()


@pytest.fixture
def history(app: Celery) -> History:
    return History(Runtime.of(app).database, "clitest")


def configured(app: Celery, **settings: Any) -> Celery:
    """The same journal under other settings."""
    return build({"durable_database_url": app.conf.durable_database_url}, settings)


def test_what_is_old_goes_and_is_counted_before(app: Celery, history: History):
    history.add("week", "week-2", ended=7 * DAY)
    history.add("failed", state=State.FAILED, ended=7 * DAY)
    history.add("day", state=State.CANCELLED, ended=DAY)
    history.add("asleep", state=State.SUSPENDED, ended=7 * DAY)
    history.add("gone", ended=30 * DAY, pruned_at=history.now - 8 * DAY, steps=0)
    would = run(app, "prune", "--older-than", "36h", "--dry-run", "--json").json
    assert would.pop("bytes") > 1000
    assert would == {"dry_run": True, "pruned": {"cancelled": 0, "completed": 2, "failed": 1}, "forgotten": 1}
    text = run(app, "prune", "--older-than", "36h", "--dry-run").out
    assert text.startswith("Namespace 'clitest': 3 executions would be pruned (2 completed, 1 failed), about ")
    assert text.endswith(" kB; 1 tombstone would be removed.\n")
    assert len(history.whole()) == 5

    assert run(app, "prune", "--older-than", "36h", "--state", "failed", "--json").json["pruned"] == {
        "cancelled": 0, "completed": 0, "failed": 1,
    }  # fmt: skip
    done = run(app, "prune", "--older-than", "36h").out
    assert done.startswith("Namespace 'clitest': 2 executions pruned (2 completed), about ")
    assert done.endswith(" kB; 0 tombstones removed.\n")
    assert (history.whole(), history.tombstones()) == (["asleep", "day"], ["failed", "week", "week-2"])
    nothing = run(app, "prune", "--older-than", "36h").out
    assert nothing == "Namespace 'clitest': 0 executions pruned, about 0 bytes; 0 tombstones removed.\n"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("settings", "options", "left"),
    [
        ({"durable_retention": {"completed": 2 * DAY / SECOND}}, [], ["c1", "f1", "f3"]),
        ({"durable_retention": 0}, ["--state", "failed"], ["c1", "c3"]),
        ({"durable_retention_count": 3}, [], ["c1", "f1", "f3"]),
        ({"durable_retention_count": 1}, ["--state", "completed"], ["f1", "f3"]),
        ({"durable_retention_count": 1}, ["--older-than", "2d"], ["c1", "f1"]),
    ],
    ids=str,
)
def test_without_an_age_it_does_what_the_settings_say(
    app: Celery, history: History, settings: dict[str, Any], options: list[str], left: list[str]
):
    for days in (3, 1):
        for letter, state in (("c", State.COMPLETED), ("f", State.FAILED)):
            history.add(f"{letter}{days}", state=state, ended=days * DAY)
    run(configured(app, **settings), "prune", *options)
    assert history.whole() == left


@pytest.mark.databases("sqlite")
def test_a_long_journal_is_removed_and_counted_once(app: Celery, history: History):
    history.add("long", ended=7 * DAY, steps=6000)
    history.add("others", ended=6 * DAY)
    assert run(app, "prune", "--older-than", "1d", "--json").json["pruned"]["completed"] == 2
    assert history.rows("long") == history.rows("others") == {}


@pytest.mark.databases("sqlite")
def test_what_it_does_not_understand_it_says(app: Celery):
    answer = run(app, "prune", fails=2)
    assert answer.err.endswith(
        "Error: say how old: --older-than 30d. (Without it, the settings durable_retention, durable_retention_count "
        "and durable_retention_bytes apply, and none of them is set.)\n"
    )
    for bad in ("7", "d", "-7d", "7 days", "1d12h"):
        answer = run(app, "prune", "--older-than", bad, fails=2)
        assert answer.err.endswith(
            f"{bad!r} is no duration; write a number and a unit, such as 7s, 7min, 7h, 7d, 7w\n"
        ), answer
    answer = run(app, "prune", "--older-than", "7d", "--state", "ambiguous", fails=2)
    assert "'ambiguous' is not one of 'cancelled', 'completed', 'failed'" in answer.err


@pytest.mark.databases("sqlite")
def test_the_other_commands_know_of_tombstones(app: Celery):
    app.tasks["nothing"].apply(task_id="whole")
    app.tasks["failing"].apply(task_id="pruned")
    run(app, "prune", "--older-than", "0s", "--state", "failed")
    assert [row["id"] for row in run(app, "list", "--json").rows] == ["whole"]
    [row] = run(app, "list", "--pruned", "--json").rows
    assert (row["id"], row["state"]) == ("pruned", "failed")
    assert row["pruned_at"] >= row["updated_at"]
    assert run(app, "list", "--pruned", "--state", "completed").err == (
        "No pruned executions that match in namespace 'clitest'.\n"
    )
    shown = run(app, "show", "pruned").text
    assert "  state       failed\n" in shown
    assert "  pruned      TIME: its journal, arguments and result were removed\n" in shown
    assert run(app, "show", "pruned", "--reveal", "--json").json["steps"] == []
    assert run(app, "resume", "pruned", fails=1).err == (
        "Error: [CD004] execution pruned is failed and was pruned (durable_retention): its journal is gone, so it "
        "cannot continue. To do its work again, call the task again under another id.\n"
    )
    assert "is failed already; there is nothing to cancel" in run(app, "cancel", "pruned", fails=1).err
    assert run(app, "resolve", "pruned", "--run", fails=1).err.startswith("Error: [CD004] execution pruned is failed; ")


@pytest.mark.databases("sqlite")
def test_a_key_that_outlives_its_execution_is_shown(app: Celery):
    app.tasks["holder"].apply((1,), task_id="holder")
    run(app, "prune", "--older-than", "0s")
    [step] = run(app, "show", "holder", "--json").json["steps"]
    assert (step["name"], step["outcome"]) == ("named", "done")
