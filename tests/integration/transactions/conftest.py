"""Fixtures of transactional steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import JournalDatabase
from tests.support.line import Line, line


@pytest.fixture
def wire(database: JournalDatabase) -> Iterator[Line]:
    """A line to the database, which a test may cut."""
    with line(database.url) as laid:
        yield laid
