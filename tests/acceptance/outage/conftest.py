"""Arenas, and a PostgreSQL of our own that tests may hurt."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.worker import WorkerFactory

from .arena import Arena
from .servers import FragilePostgreSQL


@pytest.fixture
def arena(
    database: JournalDatabase, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> Iterator[Arena]:
    """On each database that is there."""
    arena = Arena(database, broker, workers, ledger, tmp_path)
    yield arena
    arena.close()


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
def fragile(
    server: FragilePostgreSQL, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> Iterator[Arena]:
    """An arena on ``server``."""
    name = f"durable_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = server.url.replace("postgresql://", "postgresql+psycopg://").removesuffix("postgres") + name
    database = JournalDatabase("postgresql", url, "own")
    arena = Arena(database, broker, workers, ledger, tmp_path)
    yield arena
    arena.close()
    database.dispose()
