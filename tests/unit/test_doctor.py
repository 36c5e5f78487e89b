"""The doctor's checks of a configuration: each is tripped by one that deserves it, and by no other."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import re
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery
from kombu import Queue

from celery_durable import DurableTask, doctor
from celery_durable.doctor import Severity, celery_settings
from celery_durable.doctor import database as database_checks

CELERY = tuple(int(part) for part in celery.__version__.split(".")[:2])
REDIS = "redis://nowhere:1/0"


def _nothing() -> None:
    """A task that is not durable."""


def configured(
    name: str | None = "shop", task: dict[str, Any] | None = None, plain: dict[str, Any] | None = None, **settings: Any
) -> Celery:
    given = {"broker_url": REDIS, "result_backend": REDIS, "durable_database_url": "postgresql+psycopg://db/shop"}
    app = Celery(name, set_as_current=False)
    app.conf.update({**given, **settings})

    @app.task(base=DurableTask, name="job", shared=False, **(task or {}))
    def job() -> None:
        pass

    if plain is not None:
        app.task(name="plain", shared=False, **plain)(_nothing)
    app.finalize()
    # Celery gives every application what others of this process, such as other tests', share.
    for name in app.tasks.keys() - {"job", "plain"}:
        if not name.startswith(("celery.", "celery_durable.")):
            del app.tasks[name]
    return app


def told(app: Celery, code: str) -> list[doctor.Finding]:
    [check] = [check for check in doctor.checks() if check.code == code]
    return [finding for finding in check(doctor.Patient(app)) if finding.severity is not Severity.OK]


AMQP = {"broker_url": "amqp://nowhere//"}
PRIORITY = {"priority": 5}

#: Code → configurations that trip it, with words that must be said; and some that come near, and do not.
TRIPS: dict[str, tuple[list[tuple[dict[str, Any], str]], list[dict[str, Any]]]] = {
    "CD911": (
        [
            ({"durable_lease_timeout": 4.9}, "CPU-bound"),
            ({"durable_ack_timeout": 16}, "more than half"),
            ({"durable_recovery_interval": 31}, "late by as much"),
        ],
        [{"durable_lease_timeout": 5}, {"durable_ack_timeout": 15}, {"durable_recovery_interval": 30}],
    ),
    "CD912": (
        [({"name": None}, "no name")],
        [{"name": None, "durable_namespace": "shop"}, {"name": None, "durable_database_url": "sqlite:///x.db"}, {}],
    ),
    "CD913": (
        [
            ({"durable_serializer": "pickle"}, "the journal can run code"),
            ({"durable_accept_serializers": ["pickle"]}, "durable_accept_serializers has 'pickle'"),
            ({"accept_content": ["json", "pickle"]}, "the broker can run code"),
            ({"accept_content": ["application/x-python-serialize"]}, "the broker can run code"),
        ],
        [{}, {"accept_content": ["json", "msgpack"]}],
    ),
    "CD914": ([], [{}]),
    "CD915": (
        [({"durable_retention": 60, "durable_tombstone_ttl": 3600}, "after 3600 s")],
        [
            {"durable_tombstone_ttl": 3600},
            {"durable_retention": 60},
            {"durable_retention": 60, "durable_tombstone_ttl": None},
            {"durable_retention": 60, "durable_tombstone_ttl": 60, **AMQP},
        ],
    ),
    "CD916": (
        [
            ({"durable_silence": ["CD923", "CD992"]}, "durable_silence has 'CD992', which is the code of no check"),
            ({"durable_silence": ["CD101"]}, "'CD101'"),
        ],
        [{}, {"durable_silence": ["CD901", "CD916", "CD947"]}],
    ),
    "CD917": (
        [({"durable_modules": ["no_such_module_xyz"]}, "importing 'no_such_module_xyz' failed")],
        [{}, {"durable_modules": ["json.tool"]}],
    ),
    "CD922": (
        [
            ({"task_time_limit": 5}, "instead of being delivered again"),
            ({"task": {"time_limit": 4}}, "job: the hard time limit is not longer than"),
            ({"task_time_limit": 60, "task_soft_time_limit": 60}, "not shorter"),
        ],
        [{}, {"task_time_limit": 60, "task_soft_time_limit": 50}, {"task_soft_time_limit": 3}],
    ),
    "CD923": ([({"worker_prefetch_multiplier": 0}, "as many messages as there are")], [{}]),
    "CD924": ([({"worker_cancel_long_running_tasks_on_connection_loss": True}, "killed")], [{}]),
    "CD926": (
        [
            (
                {"broker_transport_options": {"visibility_timeout": 30}},
                "(30 s) is not longer than durable_lease_timeout",
            ),
            (
                {"plain": {"acks_late": True, "time_limit": 4000}},
                "not durable may run for 4000 s, longer than visibility_timeout (3600 s)",
            ),
            (
                {"broker_url": "sqs://", "plain": {"acks_late": True, "time_limit": 1801}},
                "longer than visibility_timeout (1800 s)",
            ),
        ],
        [
            {},
            {"task_time_limit": 4000},
            {"broker_transport_options": {"visibility_timeout": 120}, "task": {"time_limit": 3000}},
            {"plain": {"time_limit": 4000}},
            {"plain": {"acks_late": True, "time_limit": 4000}, **AMQP},
        ],
    ),
    "CD927": (
        [
            ({"broker_url": "filesystem://", "durable_outbox": False}, "filesystem transport loses"),
            ({"broker_url": "sqla+sqlite:///x.db", "durable_outbox": False}, "sqla transport loses"),
            ({"broker_url": "memory://"}, "in memory"),
        ],
        [{}, {"broker_url": "filesystem://"}, AMQP, {"broker_url": ["rediss://a", "redis://b"]}],
    ),
    "CD928": (
        [
            ({"task_default_priority": 3}, "there are priorities, but by default Redis"),
            ({"task": PRIORITY}, "job: there are priorities"),
            ({"task": PRIORITY, **AMQP}, "RabbitMQ"),
            ({"task": PRIORITY, **AMQP, "task_queues": [Queue("a")]}, "RabbitMQ"),
        ],
        [
            {},
            {"task": PRIORITY, "broker_transport_options": {"queue_order_strategy": "priority"}},
            {"task": PRIORITY, **AMQP, "task_queue_max_priority": 10},
            {"task": PRIORITY, **AMQP, "task_queues": [Queue("a", queue_arguments={"x-max-priority": 3})]},
            {"task": PRIORITY, **AMQP, "task_queues": [Queue("a", max_priority=3)]},
        ],
    ),
    "CD929": ([({"task_always_eager": True}, "nothing recovers")], [{}]),
    "CD931": (
        [({"result_backend": None}, "no result backend"), ({"result_backend": "rpc://"}, "rpc://")],
        [{}, {"result_backend": "db+sqlite:///x.db"}, {"result_backend": None, "task_ignore_result": True}],
    ),
    "CD932": (
        [
            ({"result_expires": 3600}, "result_expires is 3600 s"),
            ({"result_expires": dt.timedelta(hours=23)}, "result_expires is 82800 s"),
        ],
        [{}, {"result_expires": None}, {"result_expires": 60, "result_backend": "rpc://"}],
    ),
}


@pytest.mark.parametrize(
    ("code", "settings", "words"),
    [pytest.param(c, s, w, id=f"{c} {s}"[:80]) for c, (trips, _) in TRIPS.items() for s, w in trips],
)
@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_what_deserves_it_is_told(code: str, settings: dict[str, Any], words: str) -> None:
    [finding] = told(configured(**settings), code)
    assert words in finding.text
    assert finding.severity is (Severity.ERROR if code == "CD917" else Severity.WARNING)
    assert finding.cure


@pytest.mark.parametrize(
    ("code", "settings"),
    [pytest.param(c, s, id=f"{c} {s}"[:80]) for c, (_, fine) in TRIPS.items() for s in fine],
)
@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_what_only_comes_near_is_not(code: str, settings: dict[str, Any]) -> None:
    assert told(configured(**settings), code) == []


def test_a_task_that_was_made_to_acknowledge_early_after_it_was_bound() -> None:
    app = configured()
    assert told(app, "CD921") == []
    app.tasks["job"].acks_late = False
    [finding] = told(app, "CD921")
    assert finding.severity is Severity.ERROR
    assert finding.text.startswith("job: acks_late or reject_on_worker_lost was set to False")


@pytest.mark.parametrize("version", ["5.4.0", "5.6.2", "5.7.0"])
def test_celerys_own_deduplication_before_it_was_mended(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_settings.celery, "__version__", version)
    assert told(configured(), "CD925") == []
    assert bool(told(configured(worker_deduplicate_successful_tasks=True), "CD925")) is (version < "5.7")


@pytest.mark.skipif(CELERY < (5, 7), reason="result_chord_expires came with 5.7")
def test_chords_have_an_expiry_of_their_own_since_5_7() -> None:
    assert told(configured(result_expires=60, result_chord_expires=864_000), "CD932") == []
    [finding] = told(configured(result_chord_expires=60), "CD932")
    assert finding.text.startswith("result_chord_expires is 60 s")


def test_a_mistyped_code_is_told_with_those_that_there_are() -> None:
    [finding] = told(configured(durable_silence=["CD992"]), "CD916")
    assert finding.cure == f"Known are: {', '.join(check.code for check in doctor.checks())}."
    [finding] = told(configured(durable_silence=["CD992", "CD916"]), "CD916")
    assert finding.silenced


def test_passwords_are_not_shown() -> None:
    app = configured(
        durable_database_url="postgresql+psycopg://shop:hunter2@db/shop", result_backend="redis://:hunter2@nowhere/0"
    )
    findings = [
        finding for check in doctor.checks() if "CD91" < check.code < "CD94" for finding in check(doctor.Patient(app))
    ]
    assert [finding.text for finding in findings if "hunter2" in finding.text] == []
    assert any("shop:***@db" in finding.text for finding in findings)


def test_every_check_that_needs_no_database_is_tried_here() -> None:
    assert {c.code for c in doctor.checks() if "CD91" < c.code < "CD94"} == {*TRIPS, "CD921", "CD925"}


def test_the_manual_lists_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(CD\d{3})` \| ([^|]+) \|", page, re.M))
    assert rows == {check.code: check.topic for check in doctor.checks()}


# -- at a worker's start ------------------------------------------------------------------------------------------


def test_a_worker_logs_each_finding_once_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    app = configured(worker_prefetch_multiplier=0, task_always_eager=True, durable_silence=["CD929"])
    with caplog.at_level(logging.WARNING, logger="celery_durable.doctor"):
        doctor.warn_at_start(app)
    [record] = caplog.records
    assert record.getMessage().startswith("[CD923] worker_prefetch_multiplier is 0: ")
    assert record.getMessage().endswith("(celery durable doctor; to silence this: durable_silence = ['CD923'])")


def test_a_check_that_fails_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    app = configured(result_expires="a while")
    [finding] = told(app, "CD932")
    assert finding.severity is Severity.WARNING
    assert finding.text.startswith("this could not be checked: ")
    doctor.warn_at_start(app)


def test_an_application_that_knows_of_nothing_wrong_hears_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="celery_durable.doctor"):
        assert doctor.warn_at_start(configured()) == []
    assert caplog.records == []


# -- file systems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/srv/journal.db", "ext4"),
        ("/srv/shared/journal.db", "nfs4"),
        ("/srv/shared files/journal.db", "cifs"),
        ("/srv/shared-not/journal.db", "ext4"),
        ("/srv/shared/local/deep/journal.db", "xfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(file: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "server:/export /srv/shared nfs4 rw 0 0\n"
        "//server/x /srv/shared\\040files cifs rw 0 0\n"
        "/dev/vdb /srv/shared/local xfs rw 0 0\n"
    )
    assert database_checks._file_system(Path(file), mounts) == kind
    assert database_checks._file_system(Path(file), tmp_path / "none") == ""


def test_a_finding_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        doctor.Finding("CD900", "x", Severity.OK, "").code = "CD901"  # type: ignore[misc]


def test_a_long_visibility_time_out_is_no_fault_and_a_short_one_is_said_to_do() -> None:
    [check] = [check for check in doctor.checks() if check.code == "CD926"]

    def text(**settings: Any) -> str:
        [finding] = check(doctor.Patient(configured(**settings)))
        assert finding.severity is Severity.OK
        return finding.text

    assert "a few minutes are enough" in text()
    assert "a few minutes are enough" not in text(durable_outbox=True)
    assert "a few minutes are enough" not in text(broker_transport_options={"visibility_timeout": 300})
