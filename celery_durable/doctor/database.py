"""Checks of the journal's database."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from celery_durable.errors import DurableError
from celery_durable.store import migrations
from celery_durable.store.connect_options import LIBPQ
from celery_durable.store.pooler import given_options, is_between
from celery_durable.store.tables import executions, now_ms
from celery_durable.store.urls import shown

from .checks import Patient, Remark, check, error, fine, warning

__all__: list[str] = []

#: Clocks that differ by more seconds are reported.
_CLOCKS = 5.0
#: File systems that other machines have, too: SQLite's locks and shared memory do not work there.
_REMOTE = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "fuse.sshfs", "fuse.glusterfs", "lustre", "ncpfs")
#: Connections of a pool process at most: one for the body, one for statements that stand alone, the heartbeat's.
_PER_PROCESS = 3
#: What a pool of connections holds at most, see Database.
_POOL = 32


def _file(patient: Patient) -> Path | None:
    """The file of a SQLite journal."""
    database = patient.database
    name = database.url.database
    if database.dialect != "sqlite" or database.in_memory or not name or name.startswith("file:"):
        return None
    return Path(name).absolute()


@check("CD901", "database")
def reachable(patient: Patient) -> Iterator[Remark]:
    """Nothing works without it."""
    where = shown(patient.url)
    if patient.database.in_memory:
        yield error(
            "the journal is in memory: it is lost when its process ends, and no process sees another's.",
            "For tests only: name a file, sqlite:///journal.db, or a server.",
            fatal=True,
        )
        return
    file = _file(patient)
    if file is not None and not file.exists():
        yield warning(
            f"there is no journal at {file} yet: nothing durable has run with these settings in this folder.",
            "If workers have run, run this command with their configuration and in their folder. Otherwise the "
            "journal is created on first use.",
        )._replace(fatal=True)
        return
    begin = time.monotonic()
    try:
        with patient.database.engine.connect() as connection:
            connection.execute(sa.select(1))
    except sa.exc.SQLAlchemyError as failure:
        origin = getattr(failure, "orig", None) or failure
        yield error(
            f"{where} does not answer: {type(origin).__name__}: {' '.join(str(origin).split())}",
            "Is the server up, does durable_database_url name the right place, and may this machine connect to it?",
            fatal=True,
        )
        return
    yield fine(f"{where} answers ({(time.monotonic() - begin) * 1000:.0f} ms with a new connection)")


@check("CD902", "schema")
def schema(patient: Patient) -> Iterator[Remark]:
    """The tables have to be of this version."""
    engine = patient.database.engine
    found, wanted = migrations.current(engine), migrations.head()
    if found is None and patient.database.dialect == "sqlite":
        yield fine("no tables yet; they are created on first use")._replace(fatal=True)
        return
    try:
        migrations.ensure(engine, create=False)
    except DurableError as wrong:
        yield error(wrong.message, "Upgrade the tables first, then the workers.", fatal=True)
        return
    yield fine(f"revision {wanted}")


@check("CD903", "clocks")
def clocks(patient: Patient) -> Iterator[Remark]:
    """Leases and waits go by the database's clock; Celery's countdowns do not."""

    def ask(connection: sa.Connection) -> tuple[float, float, int]:
        before = time.time()
        theirs = int(connection.execute(sa.select(now_ms())).scalar_one())
        return before, time.time(), theirs

    before, after, theirs = patient.database.read(ask)
    there = theirs / 1000
    apart = before - there if there < before else max(there - after, 0.0)
    if apart > _CLOCKS:
        which = "ahead of" if there < before else "behind"
        yield warning(
            f"this machine's clock is {apart:.1f} s {which} the database's. Leases, sleeps and retention use the "
            "database's, so they are right; Celery's countdowns, ETAs and expires use those of senders and workers.",
            "Synchronise the clocks (NTP).",
        )
    else:
        yield fine(f"this machine's and the database's agree to {max(apart, after - before):.1f} s")


@check("CD904", "SQLite's place")
def place(patient: Patient) -> Iterator[Remark]:
    """SQLite is for one machine."""
    if patient.database.dialect != "sqlite":
        return
    file = _file(patient)
    kind = _file_system(file) if file is not None else ""
    if kind.startswith(_REMOTE):
        yield error(
            f"{file} is on a network file system ({kind}), where SQLite's write-ahead log does not work: the journal "
            "will be damaged.",
            "Put it on a local disk; for several machines use PostgreSQL, MySQL or MariaDB.",
        )
    hosts = _hosts(patient)
    if len(hosts) > 1:
        yield error(
            f"processes of several machines have used this file: {', '.join(hosts)}.",
            "A SQLite file is for one machine: use PostgreSQL, MySQL or MariaDB. (Containers count as machines; if "
            "all of them run on this one, silence this check.)",
        )


def _file_system(file: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that a file is on; "" if it is unknown."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    path = os.path.realpath(file)
    best = ("", "")
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        at, kind = fields[1].replace("\\040", " "), fields[2]
        inside = at == "/" or path == at or path.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best[0]):
            best = (at, kind)
    return best[1]


def _hosts(patient: Patient) -> list[str]:
    """The machines whose processes have owned the latest executions."""
    query = sa.select(executions.c.owner).order_by(executions.c.pk.desc()).limit(500)
    owners = patient.database.read(lambda c: c.execute(query).scalars().all())
    return sorted({owner.split(":", 1)[0] for owner in owners if owner})


@check("CD905", "SQLite's log")
def write_ahead(patient: Patient) -> Iterator[Remark]:
    """Without it readers and writers wait for each other."""
    if patient.database.dialect != "sqlite":
        return
    mode = str(patient.database.read(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar()))
    if mode.lower() != "wal":
        yield warning(
            f"the file's journal mode is {mode!r}: its file system cannot do write-ahead logging. Readers and writers "
            "block each other, and commits are slow.",
            "Put the file on a local disk.",
        )
    else:
        yield fine("write-ahead")


@check("CD907", "pooler")
def pooler(patient: Patient) -> Iterator[Remark]:
    """One that hands the server's sessions round is to be known."""
    database = patient.database
    if database.dialect != "postgresql" or database.url.get_driver_name() not in LIBPQ:
        return
    with database.engine.connect() as connection:
        between = is_between(connection.connection, connection.connection.driver_connection)
    if patient.settings.pooler == "none" and between:
        yield error(
            "there is a pooler between this process and the server, although durable_pooler says that there is none.",
            "Leave durable_pooler out, or set it to 'transaction'.",
        )
    elif not database.pooler.between:
        yield fine("there is none")
    else:
        yield fine("between this process and the server, without sessions of its own; limits are set per transaction")
    if database.pooler.between and given_options(database.url):
        yield warning(
            "the options of durable_database_url (?options=) may never reach the server: a pooler drops them, or "
            "refuses the connection.",
            "Set them on the server: ALTER ROLE ... SET search_path, for example.",
        )


@check("CD906", "connections")
def connections(patient: Patient) -> Iterator[Remark]:
    """More bodies at once than connections."""
    concurrency = patient.conf.worker_concurrency
    concurrency = concurrency if isinstance(concurrency, int) and concurrency > 0 else os.cpu_count() or 1
    pool = str(patient.conf.worker_pool or "prefork")
    one_process = pool.rpartition(":")[2] != "prefork" and "prefork" not in pool
    if one_process and concurrency > _POOL:
        yield warning(
            f"worker_concurrency is {concurrency} in one process, which keeps {_POOL} connections at most: "
            "bodies that commit at the same moment wait for each other.",
            f"Run more workers of up to {_POOL} each, if steps commit often.",
        )
    limit = _limit(patient)
    needed = min(concurrency, _POOL) + _PER_PROCESS if one_process else concurrency * _PER_PROCESS + 1
    if limit is not None and needed > limit * 0.8:
        yield warning(
            f"one worker of concurrency {concurrency} may need {needed} connections, and the server allows {limit} in "
            "all.",
            "Raise max_connections, put a pooler in between, or lower worker_concurrency.",
        )
    elif limit is not None:
        yield fine(f"a worker of concurrency {concurrency} needs up to {needed} of the server's {limit}")


def _limit(patient: Patient) -> int | None:
    query = {"postgresql": "SHOW max_connections", "mysql": "SELECT @@max_connections"}.get(patient.database.dialect)
    if query is None:
        return None
    return int(patient.database.read(lambda c: c.exec_driver_sql(query).scalar()))  # type: ignore[arg-type]
