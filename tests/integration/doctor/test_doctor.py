"""``celery durable doctor`` on real databases: what it finds in them, and what it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery, chord
from sqlalchemy.engine import make_url

from celery_durable import doctor
from celery_durable.doctor import Severity
from celery_durable.doctor import database as database_checks
from celery_durable.doctor import executions as execution_checks
from celery_durable.runtime import Runtime
from celery_durable.store import RetentionStore
from celery_durable.store.migrations import downgrade, head
from celery_durable.store.records import PromiseState, State
from celery_durable.store.tables import executions, outbox, promises
from tests.integration.cli.cli_app import build
from tests.support.brokers import MessageBroker
from tests.support.commands import run
from tests.support.databases import JournalDatabase
from tests.support.history import SECOND, History
from tests.support.servers import OwnPgBouncer

DAY = 86_400 * SECOND


@pytest.fixture
def app(database: JournalDatabase) -> Iterator[Celery]:
    app = build(database.conf, broker_url="redis://nowhere:1/0", result_backend="redis://nowhere:1/0")
    run(app, "upgrade")
    yield app
    Runtime.of(app).end()


@pytest.fixture
def history(app: Celery) -> History:
    return History(Runtime.of(app).database, "clitest")


def look(app: Celery, code: str) -> list[doctor.Finding]:
    [check] = [check for check in doctor.checks() if check.code == code]
    return check(doctor.Patient(app))


def told(app: Celery, code: str) -> doctor.Finding:
    [finding] = look(app, code)
    return finding


def well(app: Celery, code: str) -> bool:
    return all(finding.severity is Severity.OK for finding in look(app, code))


# -- the command --------------------------------------------------------------------------------------------------


def test_all_is_well(app: Celery, database: JournalDatabase):
    answer = run(app, "doctor")
    assert {line.split()[0] for line in answer.out.splitlines()} == {"ok"}
    assert f"ok       CD901  database: {make_url(database.url).render_as_string()} answers (" in answer.out
    report = run(app, "doctor", "--json").json
    assert report["verdict"] == "ok"
    codes = [finding["code"] for finding in report["findings"]]
    assert sorted(codes) == [check.code for check in doctor.checks()]
    assert list(report["findings"][0]) == ["code", "topic", "severity", "silenced", "text", "cure"]


def test_an_error_is_an_exit_code_unless_it_is_known(app: Celery, history: History):
    history.add("late", state=State.PENDING, wake_at=history.now - 90 * SECOND)
    history.add("parked", state=State.AMBIGUOUS)
    answer = run(app, "doctor", fails=1)
    assert "warning  CD941  parked executions: 1 execution(s) wait for an operator: parked\n" in answer.out
    assert "         celery durable show ID says why; then resolve, resume or cancel it.\n" in answer.out
    assert "error    CD942  recovery: 1 execution(s) are overdue, the first by 9" in answer.out
    assert run(app, "doctor", "--json", fails=1).json["verdict"] == "error"
    app.conf.durable_silence = ["CD942"]
    answer = run(app, "doctor")
    assert "silenced CD942  recovery: 1 execution(s) are overdue" in answer.out
    assert run(app, "doctor", "--json").json["verdict"] == "warning"


# -- the database -------------------------------------------------------------------------------------------------


@pytest.mark.databases("postgresql", "mysql")
def test_a_database_that_does_not_answer(app: Celery):
    url = make_url(app.conf.durable_database_url).set(port=1, password="hunter2")
    app.conf.durable_database_url = url.render_as_string(hide_password=False)
    report = run(app, "doctor", "--json", fails=1).json
    [finding] = [f for f in report["findings"] if f["severity"] != "ok"]
    assert (finding["code"], finding["severity"]) == ("CD901", "error")
    assert "does not answer: OperationalError" in finding["text"]
    assert "hunter2" not in str(report)
    assert {f["code"] for f in report["findings"] if f["code"] < "CD91" or f["code"] > "CD94"} == {"CD901"}


@pytest.mark.databases("sqlite")
def test_a_file_that_is_not_there_is_not_made(app: Celery, tmp_path: Path):
    app.conf.durable_database_url = f"sqlite:///{tmp_path}/elsewhere.db"
    answer = run(app, "doctor")
    assert f"warning  CD901  database: there is no journal at {tmp_path}/elsewhere.db yet" in answer.out
    assert not (tmp_path / "elsewhere.db").exists()


def test_tables_of_another_version(app: Celery, database: JournalDatabase):
    downgrade(database.engine(), "0001")
    finding = told(app, "CD902")
    assert (finding.severity, finding.fatal) == (Severity.ERROR, True)
    assert f"have revision '0001', this version of celery_durable needs '{head()}'" in finding.text
    downgrade(database.engine(), "base")
    finding = told(app, "CD902")
    assert (finding.severity, finding.fatal) == (
        (Severity.OK, True) if database.kind == "sqlite" else (Severity.ERROR, True)
    )


@pytest.mark.parametrize(("hours", "which"), [(1, "ahead of"), (-1, "behind")])
def test_clocks_that_differ(app: Celery, monkeypatch: pytest.MonkeyPatch, hours: int, which: str):
    assert well(app, "CD903")
    real = time.time
    monkeypatch.setattr(database_checks.time, "time", lambda: real() + 3600 * hours)
    finding = told(app, "CD903")
    assert finding.severity is Severity.WARNING
    assert f"s {which} the database's" in finding.text
    assert "clock is 3600." in finding.text or "clock is 3599." in finding.text


@pytest.mark.databases("sqlite")
def test_sqlite_on_several_machines_or_where_it_cannot_be(
    app: Celery, history: History, database: JournalDatabase, monkeypatch: pytest.MonkeyPatch
):
    history.add("one", owner="alpha:1:abc:1")
    assert well(app, "CD904")
    assert told(app, "CD905").text == "write-ahead"
    history.add("two", owner="beta:1:abc:1")
    finding = told(app, "CD904")
    assert finding.severity is Severity.ERROR
    assert "several machines have used this file: alpha, beta." in finding.text
    Runtime.of(app).database.write(lambda c: c.execute(sa.update(executions).values(owner=None)))
    monkeypatch.setattr(database_checks, "_file_system", lambda file: "nfs4")
    assert "network file system (nfs4)" in told(app, "CD904").text
    app.conf.durable_database_url = "sqlite://"
    assert told(app, "CD901").severity is Severity.ERROR
    assert "the journal is in memory" in told(app, "CD901").text


@pytest.mark.databases("postgresql", "mysql")
def test_more_workers_than_connections(app: Celery):
    app.conf.worker_concurrency = 4
    assert "a worker of concurrency 4 needs up to 13 of the server's" in told(app, "CD906").text
    app.conf.worker_concurrency = 5000
    assert "may need 15001 connections" in told(app, "CD906").text
    app.conf.worker_pool = "threads"
    assert "keeps 32 connections at most" in look(app, "CD906")[0].text


@pytest.mark.databases("postgresql", "pgbouncer")
def test_a_pooler(app: Celery, database: JournalDatabase):
    assert well(app, "CD907")
    if database.pooler is None:
        assert told(app, "CD907").text == "there is none"
        return
    assert "without sessions of its own" in told(app, "CD907").text
    # One that takes settings at the start of a session, and drops them.
    careless = OwnPgBouncer(database.behind.url, tolerates="extra_float_digits,options")
    careless.start()
    try:
        url = make_url(careless.url).set(database=make_url(database.url).database)
        app.conf.durable_database_url = url.render_as_string(hide_password=False)
        assert well(app, "CD907")
        app.conf.durable_pooler = "none"
        assert told(app, "CD907").severity is Severity.ERROR
        app.conf.durable_pooler = "auto"
        with_options = url.update_query_dict({"options": "-c search_path=public"})
        app.conf.durable_database_url = with_options.render_as_string(hide_password=False)
        assert any("may never reach the server" in finding.text for finding in look(app, "CD907"))
    finally:
        careless.remove()


# -- executions ---------------------------------------------------------------------------------------------------


def test_what_waits_for_somebody(app: Celery, history: History):
    now = history.now
    history.add("asleep", state=State.SUSPENDED, wake_at=now + DAY)
    history.add("just-due", state=State.SUSPENDED, wake_at=now - 5 * SECOND)
    history.add("running", state=State.RUNNING, wake_at=now + 20 * SECOND, lease_until=now + 20 * SECOND)
    history.add("sent-twice", state=State.PENDING, wake_at=now + DAY, sends=2)
    history.add("theirs", state=State.QUARANTINED, namespace="another", wake_at=1)
    assert all(well(app, code) for code in ("CD941", "CD942", "CD943"))
    history.add(*(f"parked-{n}" for n in range(5)), state=State.QUARANTINED)
    text = told(app, "CD941").text
    assert text == "5 execution(s) wait for an operator: parked-4, parked-3, parked-2, ..."
    history.add("sent-often", state=State.PENDING, wake_at=now + 1800 * SECOND, sends=5)
    text = told(app, "CD943").text
    assert text == "1 execution(s) were sent 5 times or more and have not started: sent-often (task old)"
    app.conf.durable_recovery_interval = 0.5
    history.add("untold", wake_at=now - 61 * SECOND)
    assert "1 execution(s) are overdue" in told(app, "CD942").text


def test_messages_of_the_outbox_that_nobody_sends(app: Celery, history: History):
    row = {"task": "t", "sends": 0, "created_at": 1, "codec": 1, "data": b"{}"}

    def add(pk: int, namespace: str, wake_at: int) -> None:
        values = {**row, "pk": pk, "id": f"message-{pk}", "namespace": namespace, "wake_at": wake_at}
        Runtime.of(app).database.write(lambda c: c.execute(sa.insert(outbox).values(values)))

    add(1, "clitest", history.now - 5 * SECOND)
    add(2, "another", 1)
    assert well(app, "CD942")
    add(3, "clitest", history.now - 70 * SECOND)
    assert told(app, "CD942").text == "1 message(s) of the outbox are overdue: message-3"
    assert told(app, "CD942").severity is Severity.ERROR


def test_tokens_that_lie_in_the_journal(app: Celery, history: History):
    history.add("waits", state=State.SUSPENDED)
    assert well(app, "CD947")
    pending = sa.update(promises).values(state=int(PromiseState.PENDING), token_hash=b"h" * 32)
    Runtime.of(app).database.write(lambda c: c.execute(pending))
    finding = told(app, "CD947")
    assert finding.severity is Severity.WARNING
    assert "1 awaited promise(s) may have their tokens in the journal" in finding.text
    app.conf.durable_secret = "what the shop keeps secret"
    assert well(app, "CD947")
    app.conf.durable_secret = None
    Runtime.of(app).database.write(lambda c: c.execute(sa.update(promises).values(token_hash=None)))
    assert well(app, "CD947")


def test_a_journal_that_only_grows(app: Celery, history: History, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution_checks, "_MANY", 3)
    history.add(*(f"done-{n}" for n in range(3)))
    history.add("asleep", state=State.SUSPENDED)
    history.add("pruned", pruned_at=1)
    assert told(app, "CD944").text == "off: what has ended is kept for ever"
    history.add("one-too-many", state=State.FAILED)
    assert told(app, "CD944").text.startswith("more than 3 executions have ended, and durable_retention is not set")
    app.conf.durable_retention_count = 10
    assert told(app, "CD944").text == "on"


def test_retention_that_nobody_follows(app: Celery):
    assert well(app, "CD945")
    app.conf.durable_retention = 60
    assert "no service has ever pruned" in told(app, "CD945").text
    RetentionStore(Runtime.of(app).database, namespace="clitest").take("a service", 1000)
    assert well(app, "CD945")
    Runtime.of(app).database.write(lambda c: c.exec_driver_sql("UPDATE durable_upkeep SET held_until = 1"))
    assert "no service prunes; the last one was seen" in told(app, "CD945").text


@pytest.mark.brokers("filesystem")
def test_a_member_of_a_chord_that_waits_for_too_long(database: JournalDatabase, broker: MessageBroker):
    app = build(database.conf, broker.conf, {"durable_outbox": True})
    run(app, "upgrade")
    body = app.tasks["total"].s()
    chord([app.tasks["nothing"].s(1).set(task_id="member"), app.tasks["nothing"].s(2)], app=app)(body)
    app.tasks["nothing"].apply_async((1,), task_id="alone")

    def sleep(seconds: int) -> None:
        x = executions.c
        values: dict[str, Any] = {"state": State.SUSPENDED.value, "wake_at": x.created_at + seconds * SECOND}
        Runtime.of(app).database.write(lambda c: c.execute(sa.update(executions).values(values)))

    sleep(80_000)
    assert well(app, "CD946")
    sleep(90_000)
    finding = told(app, "CD946")
    assert finding.severity is Severity.ERROR
    assert "member" in finding.text
    assert "alone" not in finding.text
    # One that waits for a decision is late as soon as its chord is forgotten.
    x = executions.c
    change = sa.update(executions).values(wake_at=None, created_at=x.created_at - 80_000 * SECOND)
    Runtime.of(app).database.write(lambda c: c.execute(change))
    assert well(app, "CD946")
    Runtime.of(app).database.write(lambda c: c.execute(change))
    assert not well(app, "CD946")
    app.conf.result_expires = None
    assert well(app, "CD946")
    app.close()
    Runtime.of(app).end()
