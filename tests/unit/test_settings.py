"""``app.conf.durable_*``: where it may come from, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import sys
import types
from typing import Any

import pytest
from celery import Celery

from celery_durable import ConfigurationError, DurableTask
from celery_durable.settings import PREFIX, Settings, load
from celery_durable.store.records import State

NAMES = [field.name for field in dataclasses.fields(Settings)]
KNOWN = ", ".join(PREFIX + name for name in NAMES)


def configured(**settings: Any) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(configured(**settings))
    return caught.value.message


# -- values -----------------------------------------------------------------------------------------------------


def test_nothing_has_to_be_set() -> None:
    assert load(configured()) == Settings(
        database_url="sqlite:///celery-durable.db",
        lease_timeout=30.0,
        recovery_interval=1.0,
        flush_interval=0.01,
        ack_timeout=5.0,
        transaction_timeout=30.0,
        max_attempts=10,
        max_steps=10_000,
        max_payload_bytes=1_048_576,
        serializer="json",
        accept_serializers=(),
        modules=(),
        previews=True,
        namespace="shop",
        on_divergence="restart",
        on_unavailable="raise",
        pooler="auto",
        outbox=False,
        retention=None,
        retention_count=None,
        retention_bytes=None,
        tombstone_ttl=604_800.0,
        key_retention=None,
        silence=(),
        secret=None,
    )


def test_everything_can_be_set() -> None:
    wanted = Settings(
        "sqlite://", 20, 0.5, 0, 2.5, 60.0, 1, 2, 3, "pickle", ("msgpack",), ("json.tool",), False, "n" * 64,
        "park", "degrade", "none", True, "default",
        {"failed": 4.0}, 5, {"completed": 6}, None, 7.0, ("CD901",), ["s" * 16],
    )  # fmt: skip
    given = {PREFIX + name: value for name, value in dataclasses.asdict(wanted).items()}
    assert len(given) == 26
    assert load(configured(**given)) == wanted
    assert wanted.lease_ms == 20_000


SECONDS = "it must be a number of seconds above 0."
COUNT = "it must be a whole number, 1 or more."
DURATION = "it must be a number of seconds, 0 or more, a timedelta, or None"
PER_STATE = "or a dict of those for 'completed', 'failed' and 'cancelled'."
AGES = f"{DURATION}, {PER_STATE}"
AMOUNT = "it must be a whole number, 0 or more"
NOT_A_NUMBER = [0, -1, "30", None, True, float("nan"), float("inf"), [30]]
NOT_A_COUNT = [0, -1, 1.5, "3", None, True]


def _bad() -> list[Any]:
    table = {
        "database_url": ([None, "", 3], "it must be a database URL."),
        "lease_timeout": (NOT_A_NUMBER, SECONDS),
        "recovery_interval": (NOT_A_NUMBER, SECONDS),
        "flush_interval": ([*NOT_A_NUMBER[1:]], "it must be a number of seconds, 0 or more."),
        "ack_timeout": (NOT_A_NUMBER, SECONDS),
        "transaction_timeout": (NOT_A_NUMBER, SECONDS),
        "max_attempts": (NOT_A_COUNT, COUNT),
        "max_steps": (NOT_A_COUNT, COUNT),
        "max_payload_bytes": (NOT_A_COUNT, "it must be a number of bytes, 1 or more."),
        "serializer": ([None, "", 1], "it must be the name of a serializer, such as 'json'."),
        "accept_serializers": (["json", [1], None, [""]], "it must be a list of serializers, such as ['msgpack']."),
        "modules": (["shop", [1], None, ["a b"], ["shop."]], "it must be a list of modules, such as ['shop.models']."),
        "previews": ([None, 1, "no"], "it must be True or False."),
        "namespace": (
            [None, 1, "n" * 65, "shop ", " shop", " "],
            "it must be a text of at most 64 characters, without blanks at its ends.",
        ),
        "on_divergence": ([None, "RESTART", "ignore", ["park"]], "it must be 'restart' or 'park'."),
        "on_unavailable": ([None, "ignore", True], "it must be 'raise' or 'degrade'."),
        "pooler": ([None, "session", True, ["auto"]], "it must be 'auto', 'transaction' or 'none'."),
        "outbox": (["yes", 1, 0, "True"], "it must be True, False or None."),
        "outbox_using": (["", 1, True], "it must be an alias of Django's DATABASES, or None."),
        "retention": ([-1, "7d", True, [7], {"done": 3}, {"completed": -1}, {State.QUARANTINED: 3}, {3: 3}], AGES),
        "retention_count": (
            [-1, 1.5, "3", True, {"done": 3}, {"completed": {"failed": 3}}],
            f"{AMOUNT}, None, {PER_STATE}",
        ),
        "retention_bytes": (
            [-1, 1.5, "1 GB", {"failed": "3"}],
            f"it must be a number of bytes, 0 or more, None, {PER_STATE}",
        ),
        "tombstone_ttl": ([-1, "7d", True, float("nan"), dt.timedelta(days=-1), {"failed": 3}], f"{DURATION}."),
        "key_retention": ([-1, "7d"], f"{DURATION}."),
        "silence": (["CD901", [901], ["CD9"], None], "it must be a list of codes, such as ['CD901']."),
        "secret": (
            ["", "fifteen letters", 5, [], ["s" * 16, "short"], [None]],
            "it must be a text of at least 16 characters, or several in a list, the newest first.",
        ),
    }
    assert list(table) == NAMES
    return [pytest.param(n, v, wants, id=f"{n}={v!r}"[:40]) for n, (values, wants) in table.items() for v in values]


@pytest.mark.parametrize(("name", "value", "wants"), _bad())
def test_a_value_of_a_wrong_kind_is_refused_with_the_right_one(name: str, value: Any, wants: str) -> None:
    shown = "(not shown)" if name == "secret" else repr(value)
    assert refused(**{PREFIX + name: value}) == f"durable_{name} = {shown}: {wants}"


def test_a_secret_is_not_shown_with_the_settings() -> None:
    assert "hidden" not in repr(load(configured(durable_secret="a hidden secret of mine")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"durable_lease_timeout": 3, "durable_flush_interval": 3},
            "durable_flush_interval = 3 must be much shorter than durable_lease_timeout = 3.",
        ),
        (
            {"durable_lease_timeout": 3, "durable_ack_timeout": 3.0},
            "durable_ack_timeout = 3.0 must be shorter than durable_lease_timeout = 3.",
        ),
        (
            {"durable_database_url": "oracle://localhost/shop"},
            "durable_database_url: 'oracle' cannot hold a journal; use sqlite, postgresql, mysql or mariadb.",
        ),
        ({"durable_lease_time": 3}, "unknown setting durable_lease_time. Did you mean durable_lease_timeout?"),
        ({"durable_zzz": 3}, f"unknown setting durable_zzz. Known are: {KNOWN}."),
        ({"DURABLE_OUTBOKS": True}, "unknown setting durable_outboks. Did you mean durable_outbox?"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_work_is_refused_with_the_cure(settings: dict[str, Any], message: str) -> None:
    assert refused(**settings) == message


def test_a_serializer_that_kombu_does_not_know_is_refused_with_those_it_does() -> None:
    assert re.fullmatch(
        r"durable_serializer = 'jsn' is not registered with kombu\. Use one of: json, .*pickle.*; or register it with "
        r"kombu\.serialization\.register\(\) before the application starts\.",
        refused(durable_serializer="jsn"),
    )


def test_a_short_lease_shortens_the_wait_for_the_database_unless_that_was_given() -> None:
    assert load(configured(durable_lease_timeout=4)).ack_timeout == 2
    assert load(configured(durable_lease_timeout=4, durable_ack_timeout=3)).ack_timeout == 3


@pytest.mark.parametrize(
    ("conf", "outbox"),
    [
        ({"broker_url": "filesystem://"}, True),
        ({"broker_url": "sqla+sqlite:///x.db"}, True),
        ({"broker_url": "sqlalchemy+sqlite:///x.db"}, True),
        ({"broker_url": ["filesystem://", "redis://"]}, True),
        ({"broker_url": "redis://", "broker_write_url": "filesystem://"}, True),
        ({"broker_url": "redis://localhost"}, False),
        ({"broker_url": "amqp://localhost"}, False),
        ({"broker_url": "filesystem://", "durable_outbox": False}, False),
        ({"broker_url": "redis://", "durable_outbox": True}, True),
    ],
)
def test_the_outbox_is_on_where_a_broker_loses_messages(conf: dict[str, Any], outbox: bool) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(conf)
    assert load(app).outbox is outbox


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (0, {"cancelled": 0.0, "completed": 0.0, "failed": 0.0}),
        (dt.timedelta(days=1), {"cancelled": 86_400.0, "completed": 86_400.0, "failed": 86_400.0}),
        ({"completed": dt.timedelta(minutes=1), "failed": None}, {"completed": 60.0}),
        ({State.FAILED: 3}, {"failed": 3.0}),
        ({}, None),
    ],
    ids=str,
)
def test_retention_may_be_written_in_several_ways(given: Any, read: Any) -> None:
    assert load(configured(durable_retention=given)).retention == read


def test_an_application_without_a_name_has_the_namespace_celery() -> None:
    assert load(Celery(set_as_current=False)).namespace == "celery"
    assert load(Celery("n" * 70, set_as_current=False)).namespace == "n" * 64
    assert load(Celery("shop ", set_as_current=False)).namespace == "shop"


@pytest.mark.parametrize("settings", [{"durable_leas": 1}, {"durable_serializer": "jsn"}])
def test_a_worker_does_not_start_with_a_wrong_setting(settings: dict[str, Any]) -> None:
    app = configured(**settings)

    @app.task(base=DurableTask, shared=False)
    def job() -> None:
        pass

    app.finalize()
    with pytest.raises(ConfigurationError, match=f"durable_{next(iter(settings))[8:]}"):
        app.WorkController(pool="solo")


# -- where they come from ---------------------------------------------------------------------------------------


class Module:
    durable_lease_timeout = 12
    task_default_queue = "orders"


class OldStyle:
    CELERY_DEFAULT_QUEUE = "orders"
    DURABLE_LEASE_TIMEOUT = 12


class Namespaced:
    CELERY_TASK_DEFAULT_QUEUE = "orders"
    CELERY_DURABLE_LEASE_TIMEOUT = 12
    #: Belongs to another library.
    DURABLE_RULES = "strict"


class OtherNamespace:
    SHOP_TASK_DEFAULT_QUEUE = "orders"
    SHOP_DURABLE_LEASE_TIMEOUT = 12


@pytest.mark.parametrize(
    ("source", "namespace"), [(Module, None), (OldStyle, None), (Namespaced, "CELERY"), (OtherNamespace, "SHOP")]
)
@pytest.mark.parametrize("how", ["object", "name", "dict"])
def test_settings_come_from_wherever_celerys_come_from(
    source: Any, namespace: str | None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name: value for name, value in vars(source).items() if not name.startswith("__")}
    given: Any = source if how == "object" else values
    if how == "name":
        given = "shop_settings"
        module = types.ModuleType(given)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, given, module)
    app = Celery("shop", set_as_current=False)
    app.config_from_object(given, namespace=namespace)
    assert (load(app).lease_timeout, app.conf.task_default_queue) == (12, "orders")
    # What is set in the program outranks it.
    app.conf.durable_lease_timeout = 13
    assert load(app).lease_timeout == 13


def test_settings_may_be_given_to_the_constructor() -> None:
    assert load(Celery("shop", set_as_current=False, durable_lease_timeout=12)).lease_timeout == 12
    app = Celery("shop", set_as_current=False, changes={"durable_lease_timeout": 12})
    assert load(app).lease_timeout == 12


def test_a_wrong_key_in_a_namespace_is_told_without_the_prefix_of_the_namespace() -> None:
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"CELERY_DURABLE_OUTBOXES": True}, namespace="CELERY")
    with pytest.raises(ConfigurationError, match=r"unknown setting durable_outboxes\. Did you mean durable_outbox\?"):
        load(app)
