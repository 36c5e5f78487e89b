"""What ``import celery_durable`` loads and shows."""

from __future__ import annotations

import subprocess
import sys

import celery_durable

#: What nobody pays for who does not use it.
UNUSED = {"alembic", "django.db", "gevent", "pydantic", "rich", "sqlalchemy.ext.asyncio", "sqlalchemy.orm"}


def loaded(code: str) -> set[str]:
    """The modules of a process that has run this."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, check=True, text=True
    )
    return set(shown.stdout.split())


def test_it_loads_nothing_that_it_does_not_need() -> None:
    ours = loaded("import celery_durable")
    assert not ours & UNUSED
    # What Celery and SQLAlchemy load anyway.
    theirs = loaded("import sqlalchemy, celery.worker.request; from celery import Celery, Task, bootsteps, signals")
    outside = {name.partition(".")[0] for name in ours - theirs}
    assert outside - set(sys.stdlib_module_names) <= {"blake3", "celery", "celery_durable", "kombu", "sqlalchemy"}


def test_dir_shows_the_public_names() -> None:
    assert {name for name in dir(celery_durable) if not name.startswith("__")} == set(celery_durable.__all__)
