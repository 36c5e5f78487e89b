"""Which application is meant by ``resolve()`` and the like where none is named, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

#: Three ways to ask from a thread. Each says what it came to.
HEAD = """
import threading
from celery import Celery, shared_task
import celery_durable
from celery_durable import ConfigurationError, DurableTask, UnknownExecution, WrongToken

def make(name, **options):
    app = Celery(name, broker="memory://", **options)
    app.conf.durable_database_url = f"sqlite:///{name}.db"
    return app

def add(app):
    @app.task(base=DurableTask, bind=True, name="job")
    def job(self):
        promise = self.durable.promise("approval")
        given.append(promise)
        celery_durable.resolve(promise.id, promise.token, "yes", app=self.app)
        return self.durable.wait(promise)
    return job

def ask():
    calls = {
        "get": lambda: celery_durable.get("one"),
        "resolve": lambda: celery_durable.resolve(*key, "yes"),
        "reject": lambda: celery_durable.reject(*key, "no"),
        "heartbeat": lambda: celery_durable.heartbeat(*key),
    }
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            print(name, type(error).__name__, error)
        else:
            print(name, "done")

def in_thread():
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

def touch(task):
    thread = threading.Thread(target=lambda: task.name)
    thread.start()
    thread.join()

given = []
key = ("0" * 32, "no token")
"""


def run(folder: Path, program: str) -> list[str]:
    """What a program says, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


#: The execution and its promise are found: the verdict stands, and the promise expects no signs of life.
FOUND = ["get done", "resolve done", "reject PromiseSettled", "heartbeat ConfigurationError"]


@pytest.mark.parametrize(
    "program",
    [
        # As a producer has it: its tasks are lazy, and nobody has looked at them.
        "app = make('shop')\nadd(app)\n",
        "app = make('shop', set_as_current=False)\nadd(app)\n",
        # The tasks run somewhere else.
        "app = make('shop')\n",
        # Celery's own has durable tasks too: those that every application has.
        "app = make('shop')\ntouch(shared_task(base=DurableTask)(ask))\n",
        # Another one, without durable tasks.
        "app = make('shop')\nadd(app)\nother = Celery('other')\n",
        # Several; one is the process's.
        "app = make('shop')\nadd(app)\nother = make('other')\nadd(other).name\napp.set_default()\n",
    ],
    ids=["lazy", "not current", "without tasks", "shared tasks", "beside another", "default"],
)
def test_a_thread_finds_the_application_of_the_program(tmp_path: Path, program: str) -> None:
    first = "made = make('shop', set_as_current=False)\njob = add(made)\njob.apply(task_id='one').get()\n"
    store = "import json; json.dump([given[0].id, given[0].token], open('key', 'w'))\n"
    run(tmp_path, first + store)
    said = run(tmp_path, "import json; key = json.load(open('key'))\n" + program + "in_thread()\n")
    assert [" ".join(line.split()[:2]) for line in said] == FOUND
    assert [file.name for file in tmp_path.glob("*.db")] == ["shop.db"]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("", "there is no Celery application here except the default one that Celery creates"),
        ("touch(shared_task(base=DurableTask)(ask))\n", "there is no Celery application here except the default one"),
        ("one, two = make('one'), make('two')\n", "There are several ('one', 'two'), and none of them is current"),
        ("one, two = make('one'), make('two')\nadd(one)\nadd(two)\n", "There are several ('one', 'two')"),
        # One of them knows its tasks already; that is no reason to take it.
        ("one, two = make('one'), make('two')\nadd(one).name\nadd(two)\n", "There are several ('one', 'two')"),
    ],
    ids=["none", "shared tasks only", "two", "two durable ones", "two, one finalized"],
)
def test_where_it_is_not_clear_which_is_meant_nothing_is_guessed(tmp_path: Path, program: str, says: str) -> None:
    said = run(tmp_path, program + "in_thread()\n")
    assert [" ".join(line.split()[:2]) for line in said] == [
        f"{name} ConfigurationError" for name in ("get", "resolve", "reject", "heartbeat")
    ]
    for line in said:
        assert says in line
        assert "pass app=" in line.lower()
    assert list(tmp_path.glob("*.db*")) == []


def test_one_that_has_durable_tasks_is_meant_where_none_names_a_database(tmp_path: Path) -> None:
    said = run(tmp_path, "app, other = Celery('shop'), Celery('other')\nadd(app).name\nin_thread()\nask()\n")
    assert [" ".join(line.split()[:2]) for line in said] == [
        "get UnknownExecution",
        "resolve WrongToken",
        "reject WrongToken",
        "heartbeat WrongToken",
    ] * 2
    assert ["'shop'" in line for line in (said[0], said[4])] == [True, True]


def test_what_celery_makes_up_may_be_configured(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text("durable_database_url = 'sqlite:///configured.db'\n")
    assert [" ".join(line.split()[:2]) for line in run(tmp_path, "in_thread()\n")] == [
        "get UnknownExecution",
        "resolve WrongToken",
        "reject WrongToken",
        "heartbeat WrongToken",
    ]
    assert [file.name for file in tmp_path.glob("*.db")] == ["configured.db"]


def test_a_shared_task_makes_no_journal_for_what_celery_makes_up(tmp_path: Path) -> None:
    program = """
@shared_task(base=DurableTask)
def job():
    pass

def ask():
    try:
        job.apply_async(durable_id="one")
    except ConfigurationError as error:
        print(error)

in_thread()
"""
    [said] = run(tmp_path, program)
    assert "Pass app=" in said
    assert list(tmp_path.glob("*.db*")) == []
