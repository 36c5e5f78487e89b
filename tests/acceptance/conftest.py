"""The arenas of tests: a package of tests says in its module ``arena`` what its own is like."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.worker import WorkerFactory

from .crash.arena import Arena
from .outage.servers import FragilePostgreSQL


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


# -- on a PostgreSQL of our own that tests may hurt -------------------------------------------------------------


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[FragilePostgreSQL]:
    server = FragilePostgreSQL()
    yield server
    server.remove()


@pytest.fixture
def server(own_postgresql: FragilePostgreSQL) -> Iterator[FragilePostgreSQL]:
    """It runs when the test begins, and is this test's alone."""
    own_postgresql.start()
    yield own_postgresql
    own_postgresql.thaw()


@pytest.fixture
def fragile(server: FragilePostgreSQL, build_arena: Callable[[JournalDatabase], Arena]) -> Iterator[Arena]:
    """An arena on ``server``."""
    name = f"durable_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = server.url.replace("postgresql://", "postgresql+psycopg://").removesuffix("postgres") + name
    database = JournalDatabase("postgresql", url, "own")
    arena = build_arena(database)
    yield arena
    arena.close()
    database.dispose()
