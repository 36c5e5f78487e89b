"""The arenas of tests: a package of tests says in its module ``arena`` what its own is like."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.backends import in_ci
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.servers import ServerFailed
from tests.support.worker import WorkerFactory

from .crash.arena import Arena
from .outage.servers import FRAGILE, Fragile


@pytest.fixture
def build_arena(
    request: pytest.FixtureRequest, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> Callable[[JournalDatabase], Arena]:
    """Makes an arena, as the package of the test has it, on a database."""
    made: type[Arena] = importlib.import_module(".arena", request.module.__package__).Arena
    return lambda database: made(database, broker, workers, ledger, tmp_path)


@pytest.fixture
def arena(database: JournalDatabase, build_arena: Callable[[JournalDatabase], Arena]) -> Iterator[Arena]:
    """On each database that is there."""
    arena = build_arena(database)
    yield arena
    arena.close()


# -- on a server of our own that tests may hurt -----------------------------------------------------------------


@pytest.fixture(scope="session")
def own_servers() -> Iterator[dict[str, Fragile]]:
    servers: dict[str, Fragile] = {}
    yield servers
    for server in servers.values():
        server.remove()


@pytest.fixture
def server(request: pytest.FixtureRequest, own_servers: dict[str, Fragile]) -> Iterator[Fragile]:
    """It runs when the test begins, and is this test's alone: PostgreSQL, or the kind that a parameter names."""
    kind = getattr(request, "param", "postgresql")
    if kind not in own_servers:
        try:
            own_servers[kind] = FRAGILE[kind]()
        except ServerFailed as reason:
            if in_ci():
                raise
            pytest.skip(f"there is no {kind} that may be hurt: {reason}")
    own_servers[kind].start()
    yield own_servers[kind]
    own_servers[kind].thaw()


@pytest.fixture
def fragile(server: Fragile, build_arena: Callable[[JournalDatabase], Arena]) -> Iterator[Arena]:
    """An arena on ``server``."""
    database = server.new_database()
    arena = build_arena(database)
    yield arena
    arena.close()
    database.dispose()
