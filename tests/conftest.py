"""Fixtures and the report of backends, for every test.

A test that asks for ``database`` runs once on each database, one that asks for ``broker`` once on each broker. The
markers ``databases`` and ``brokers`` narrow that for a test; the variables ``DURABLE_TEST_DATABASES`` and
``DURABLE_TEST_BROKERS`` (words with commas) for a run. What is missing on this machine is skipped and reported at
the end of the run; with ``CI`` set it fails the run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import settings

from .support import brokers, databases
from .support.backends import Missing, Registry, Usage, in_ci, merge, missing, selected, summary
from .support.brokers import MessageBroker
from .support.databases import JournalDatabase
from .support.ledger import Ledger
from .support.worker import WorkerFactory

UNIT = Path(__file__).parent / "unit"

DATABASES = Registry(databases.FINDERS)
BROKERS = Registry(brokers.FINDERS)

#: Fixture → its registry, its marker, the variable that selects, the kinds a test gets when it names none, and those
#: that need no server.
PARAMETERS: dict[str, tuple[Registry[Any], str, str, tuple[str, ...], tuple[str, ...]]] = {
    "database": (DATABASES, "databases", "DURABLE_TEST_DATABASES", ("sqlite", "postgresql", "mysql"), ("sqlite",)),
    "broker": (
        BROKERS,
        "brokers",
        "DURABLE_TEST_BROKERS",
        ("filesystem", "redis", "rabbitmq"),
        ("filesystem", "memory"),
    ),
}

# A run is judged by what is true, not by how long one example took; and CI tries the same examples every time.
settings.register_profile("durable", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("durable"), derandomize=True)

#: Of the root logger, before any worker has set it.
LEVEL = logging.getLogger().level

#: What was used in this run, other processes of pytest-xdist included.
USAGE: dict[str, Usage] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: tests wait most of their time, for leases to lapse and for killed workers."""
    return min((os.cpu_count() or 1) + 1, 8)


# -- fixtures ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet_as_ever() -> Iterator[None]:
    """A worker in the process of a test, perhaps one that serves a whole module, sets the root logger's level."""
    logging.getLogger().setLevel(LEVEL)
    yield
    logging.getLogger().setLevel(LEVEL)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JournalDatabase]:
    """An empty database of this test's own, on each kind of server in turn."""
    with _use(DATABASES, request.param).lend(tmp_path) as lent:
        yield lent


@pytest.fixture
def database_url(database: JournalDatabase) -> str:
    """The SQLAlchemy URL of ``database``."""
    return database.url


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MessageBroker]:
    """An empty broker, or a queue of this test's own, on each kind in turn."""
    with _use(BROKERS, request.param).lend(tmp_path) as lent:
        yield lent


@pytest.fixture
def client(broker: MessageBroker) -> Iterator[Celery]:
    """An application without tasks, connected to ``broker``: it sends by name and reads results."""
    app = Celery("client", set_as_current=False)
    app.conf.update(broker.conf)
    yield app
    app.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[WorkerFactory]:
    """Starts real workers, and ends them with the test: ``workers(app, broker.conf, database.conf)``."""
    factory = WorkerFactory(tmp_path)
    yield factory
    factory.end()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An outside witness of effects."""
    return Ledger(tmp_path / "ledger.jsonl")


def _use(registry: Registry[Any], kind: str) -> Any:
    try:
        return registry.use(kind)
    except Missing as reason:
        pytest.skip(f"{kind} is missing: {reason}")


# -- one test, several backends ---------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, (registry, marker_name, variable, default, serverless) in PARAMETERS.items():
        if fixture not in metafunc.fixturenames:
            continue
        marker = metafunc.definition.get_closest_marker(marker_name)
        wanted = marker.args if marker else default
        if unknown := [kind for kind in wanted if kind not in registry.finders]:
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: unknown {marker_name} {unknown}")
        allowed = {*selected(variable, registry.finders), "memory"}
        if UNIT in metafunc.definition.path.parents:
            if not set(wanted) <= set(serverless):
                raise pytest.UsageError(
                    f"{metafunc.definition.nodeid}: a unit test touches no service. Mark it "
                    f"@pytest.mark.{marker_name}({', '.join(map(repr, serverless))}), or move it to tests/integration."
                )
            allowed.update(serverless)
        parameters = [pytest.param(kind, id=kind) for kind in wanted if kind in allowed]
        if not parameters:
            skip = pytest.mark.skip(reason=f"{variable} does not select {' or '.join(wanted)}")
            parameters = [pytest.param("", id=f"no-{fixture}", marks=skip)]
        metafunc.parametrize(fixture, parameters, indirect=True)


# -- reports ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    workers = getattr(item, "funcargs", {}).get("workers")
    if report.failed and report.when == "call" and isinstance(workers, WorkerFactory):
        report.sections.extend(workers.logs())
    return report  # type: ignore[return-value]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of pytest-xdist counted."""
    merge(USAGE, getattr(node, "workeroutput", {}).get("durable_backends", {}))


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("ci" if in_ci() else "durable")
    for registry, _, variable, _, _ in PARAMETERS.values():
        try:
            selected(variable, registry.finders)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    for registry in (DATABASES, BROKERS):
        merge(USAGE, {kind: asdict(usage) for kind, usage in registry.usage.items()})
        registry.close()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["durable_backends"] = {kind: asdict(usage) for kind, usage in USAGE.items()}
    elif missing(USAGE) and in_ci():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    _say_what_was_tried_again(terminalreporter)
    if not USAGE:
        return
    terminalreporter.section("backends")
    order = [*DATABASES.finders, *BROKERS.finders]
    for line in summary({kind: USAGE[kind] for kind in order if kind in USAGE}):
        terminalreporter.write_line(line)
    if missing(USAGE) and in_ci():
        terminalreporter.write_line(
            f"FAILED: CI is set, and tests were skipped for want of {', '.join(missing(USAGE))}.", red=True, bold=True
        )


def _say_what_was_tried_again(terminalreporter: pytest.TerminalReporter) -> None:
    """Where each test failed that was tried again, and with what: pytest itself says so of the last try alone."""
    found = terminalreporter.stats.get("rerun", [])
    if not found:
        return
    terminalreporter.section("what was tried again, and why")
    for report in found:
        crash = getattr(report.longrepr, "reprcrash", None)
        where, message = (f"{crash.path}:{crash.lineno}", crash.message) if crash else ("", report.longreprtext)
        terminalreporter.write_line(f"{report.nodeid} {where}")
        for line in [line for line in message.splitlines() if line.strip()][:6]:
            terminalreporter.write_line(f"    {line[:300]}")
