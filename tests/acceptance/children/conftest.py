"""The arena of a test that has its workers to itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase
from tests.support.ledger import Ledger
from tests.support.worker import WorkerFactory

from .arena import Arena


@pytest.fixture
def arena(
    database: JournalDatabase, broker: MessageBroker, workers: WorkerFactory, ledger: Ledger, tmp_path: Path
) -> Iterator[Arena]:
    arena = Arena(database, broker, workers, ledger, tmp_path)
    yield arena
    arena.close()
