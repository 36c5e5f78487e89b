"""Fixtures of the tests of the rules, which need no worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.databases import JournalDatabase
from tests.support.delivery import Delivery
from tests.support.lab import Lab, quiet_heartbeat
from tests.support.ledger import Ledger

from .asking import Asking


@pytest.fixture
def make_lab(request: pytest.FixtureRequest, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a lab with settings of the test's own."""
    quiet_heartbeat(monkeypatch)
    labs = []
    conf = {}
    if "database" in request.fixturenames:
        database: JournalDatabase = request.getfixturevalue("database")
        conf = database.conf

    def make(kind: type[Lab] = Lab, **settings: Any) -> Lab:
        labs.append(kind(ledger, **{**conf, **settings}))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab with the default settings."""
    return make_lab()


@pytest.fixture
def deliver(lab: Lab) -> Delivery:
    """Delivers messages of the lab's task."""
    return Delivery(lab)


@pytest.fixture
def asking(lab: Lab) -> Asking:
    """A body that asks for an approval."""
    return Asking(lab)
