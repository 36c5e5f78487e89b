"""A disk that is full for longer than a lease: nobody can renew, and nobody is taken over when there is room again."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from celery_durable.store.tables import executions, now_ms
from tests.support.databases import JournalDatabase
from tests.support.saboteur import ERRORS, refusing
from tests.support.wait import eventually

from .arena import Arena

pytestmark = pytest.mark.brokers("redis")

SLOW_LEASE = {"durable_lease_timeout": 6.0}


def owned(database: JournalDatabase) -> tuple[bool, int]:
    """Whether the lease of ``held`` holds, and how often it has changed hands."""
    query = sa.select(executions.c.lease_until > now_ms(), executions.c.epoch).where(executions.c.id == "held")
    with database.engine(poolclass=sa.pool.NullPool).connect() as connection:
        holds, epoch = connection.execute(query).one()
    return bool(holds), int(epoch)


def check(arena: Arena, full: contextlib.AbstractContextManager[None]) -> None:
    worker = arena.start(durable=SLOW_LEASE, concurrency=3)
    arena.send("held", "held", "release")
    arena.await_fired(1, "held")
    with full:
        # Room again just when the lease has run out: recovery is there at once.
        eventually(lambda: not owned(arena.database)[0], 60)
    eventually(lambda: owned(arena.database)[0], 60)
    arena.open_gate("release")
    assert arena.result("held").get(timeout=60) == "released"
    assert [effect["name"] for effect in arena.ledger.entries(execution="held")] == ["before", "held", "after"]
    assert owned(arena.database)[1] == 1, worker.log()


@pytest.mark.databases("postgresql", "mysql")
def test_live_owners_are_not_taken_over(arena: Arena) -> None:
    check(arena, refusing(arena.database, ERRORS[arena.database.kind]["disk full"]))


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nobody may mount a small disk here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.databases("sqlite")
def test_live_owners_of_a_file_are_not_taken_over(
    small_disk: Path, build_arena: object, database: JournalDatabase
) -> None:
    assert callable(build_arena)
    journal = JournalDatabase("sqlite", f"sqlite:///{small_disk / 'journal.db'}", database.version)
    arena = build_arena(journal)
    try:
        check(arena, filled(small_disk))
    finally:
        arena.close()
        journal.dispose()
