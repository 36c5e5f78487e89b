"""The arena of a test that has its workers to itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.outage.conftest import own_postgresql, server
from tests.acceptance.outage.servers import FragilePostgreSQL
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.worker import WorkerFactory

from .arena import Arena

__all__ = ["arena", "fragile", "own_postgresql", "server"]


@pytest.fixture
def arena(
    database: JournalDatabase, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> Iterator[Arena]:
    arena = Arena(database, broker, workers, ledger, tmp_path)
    yield arena
    arena.close()


@pytest.fixture
def fragile(
    server: FragilePostgreSQL,
    broker: MessageBroker,
    workers: WorkerFactory,
    ledger: Ledger,
    tmp_path: Path,
) -> Iterator[Arena]:
    """An arena on a PostgreSQL that the test may hurt."""
    name = f"durable_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = server.url.replace("postgresql://", "postgresql+psycopg://").removesuffix("postgres") + name
    database = JournalDatabase("postgresql", url, "own")
    arena = Arena(database, broker, workers, ledger, tmp_path)
    yield arena
    arena.close()
    database.dispose()
