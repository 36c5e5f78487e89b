"""The schema, as the migrations make it; and how a process finds it, on every database."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.engine import Engine, make_url

from celery_durable.errors import ConfigurationError, SchemaError
from celery_durable.store import Database, migrations
from celery_durable.store.migrations import revisions, running
from celery_durable.store.tables import metadata, now_ms
from tests.support.databases import JournalDatabase

FIRST = {"durable_execution", "durable_payload", "durable_journal", "durable_guard"}
TABLES = {*FIRST, "durable_promise", "durable_outbox", "durable_upkeep"}
VERSION = "durable_version"

HEAD = migrations.head()
#: Of a version of the library that is later than this one.
LATER = f"{int(HEAD) + 1:04}"

NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "{LATER}"
down_revision = "{HEAD}"
branch_labels = depends_on = None


def upgrade():
    op.create_table("durable_later", sa.Column("pk", sa.BigInteger, primary_key=True))


def downgrade():
    op.drop_table("durable_later")
"""

FAILING = NEXT.replace("def downgrade", '    raise RuntimeError("in the middle")\n\n\ndef downgrade')


def tables(engine: Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


def differences(engine: Engine) -> list[Any]:
    """Where the database is not what ``tables.py`` says, as Alembic sees it."""
    with engine.connect() as connection:
        options = {"version_table": VERSION, "compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


#: What each database itself says of its tables; Alembic does not look at collations, options and partial indexes.
#: PostgreSQL's fill factor is not among it: that one is the migration's alone.
CATALOG = {
    "sqlite": """
        SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name != 'durable_version'
    """,
    "postgresql": """
        SELECT relname, relkind, relpersistence FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND NOT starts_with(relname::text, 'durable_version');
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attnum > 0 AND c.relkind = 'r'
            AND c.relnamespace = 'public'::regnamespace AND c.relname != 'durable_version';
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename != 'durable_version';
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid != 0
            AND connamespace = 'public'::regnamespace AND conrelid != 'durable_version'::regclass
    """,
    "mysql": """
        SELECT table_name, engine, table_collation FROM information_schema.tables
            WHERE table_schema = DATABASE() AND table_name != 'durable_version';
        SELECT table_name, ordinal_position, column_name, column_type, is_nullable, column_default,
            character_set_name, collation_name, extra FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name != 'durable_version';
        SELECT table_name, index_name, non_unique, seq_in_index, column_name, sub_part
            FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name != 'durable_version'
    """,
}


def catalog(kind: str, engine: Engine) -> list[list[str]]:
    def row(values: Any) -> str:
        return " | ".join(" ".join(str(value).split()) for value in values)

    with engine.connect() as connection:
        return [sorted(map(row, connection.exec_driver_sql(query))) for query in CATALOG[kind].split(";")]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migrations of a later version of the library: change them at will."""
    folder = tmp_path / "100% other" / "migrations"
    shutil.copytree(revisions.SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(revisions, "SCRIPTS", folder)
    return folder / "versions"


# -- the scripts ------------------------------------------------------------------------------------------------


def test_the_names_of_the_files_tell_the_revisions():
    config = Config()
    config.set_main_option("script_location", str(revisions.SCRIPTS))
    alembic = ScriptDirectory.from_config(config)
    assert alembic.get_heads() == [migrations.head()]
    assert [script.revision for script in alembic.walk_revisions()] == revisions.known()[::-1]


def test_up_down_and_up_again(database: JournalDatabase):
    engine = database.engine()
    assert migrations.current(engine) is None
    migrations.upgrade(engine)
    assert tables(engine) == {*TABLES, VERSION}
    assert migrations.current(engine) == HEAD
    migrations.upgrade(engine)

    migrations.downgrade(engine, "base")
    assert tables(engine) == {VERSION}
    assert migrations.current(engine) is None

    migrations.upgrade(database.url, "0001")
    assert tables(engine) == {*FIRST, VERSION}
    migrations.upgrade(engine)
    assert tables(engine) == {*TABLES, VERSION}
    migrations.downgrade(database.url, "0001")
    assert tables(engine) == {*FIRST, VERSION}
    migrations.downgrade(database.url, "base")
    assert tables(engine) == {VERSION}


def test_the_tables_are_those_of_the_statements(database: JournalDatabase):
    engine = database.engine()
    migrations.upgrade(engine)
    assert differences(engine) == []
    migrated = catalog(database.kind, engine)
    assert all(migrated)

    migrations.downgrade(engine, "base")
    metadata.create_all(engine)
    assert migrated == catalog(database.kind, engine)


@pytest.mark.databases("sqlite")
def test_sqlite_keeps_the_journal_in_the_order_of_its_key(database: JournalDatabase):
    engine = database.engine()
    migrations.upgrade(engine)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        sql: dict[str, str] = {row.name: row.sql for row in rows}
    assert {name for name, text in sql.items() if text.rstrip().endswith("WITHOUT ROWID")} == {"durable_journal"}
    assert sql["ix_durable_execution_wake"].endswith("WHERE wake_at IS NOT NULL")
    # The alias of the row's number: SQLite needs no second index for it.
    assert "pk INTEGER NOT NULL" in sql["durable_execution"]


@pytest.mark.databases("postgresql")
def test_postgresql_leaves_room_beside_hot_rows(database: JournalDatabase):
    engine = database.engine()
    migrations.upgrade(engine)
    with engine.connect() as connection:
        roomy = connection.exec_driver_sql("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL")
        assert {row.relname: row.reloptions for row in roomy if row.relname.startswith("durable")} == {
            "durable_execution": ["fillfactor=80"]
        }
        index = connection.exec_driver_sql(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_durable_execution_wake'"
        ).scalar_one()
    assert index.endswith("(namespace, wake_at) WHERE (wake_at IS NOT NULL)")


@pytest.mark.databases("mysql")
def test_mysql_compares_byte_by_byte_and_holds_large_payloads(database: JournalDatabase):
    with database.engine().connect() as connection:
        # Whatever the server's defaults are.
        connection.exec_driver_sql(f"ALTER DATABASE {make_url(database.url).database} CHARACTER SET latin1")
    engine = database.engine()
    migrations.upgrade(engine)
    with engine.connect() as connection:
        engines = connection.exec_driver_sql(
            "SELECT table_name, engine, table_collation FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name != 'durable_version'"
        ).all()
        assert {(name, engine) for name, engine, _ in engines} == {(name, "InnoDB") for name in TABLES}
        columns = connection.exec_driver_sql(
            "SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name != 'durable_version'"
        ).all()
    texts = {f"{table}.{column}": collation for table, column, _, collation in columns if collation}
    assert texts == {
        "durable_execution.namespace": "utf8mb4_bin",
        "durable_execution.id": "utf8mb4_bin",
        "durable_execution.task": "utf8mb4_bin",
        "durable_execution.state": "ascii_bin",
        "durable_execution.owner": "ascii_bin",
        "durable_journal.scope": "ascii_bin",
        "durable_journal.name": "utf8mb4_bin",
        "durable_guard.scope": "ascii_bin",
        "durable_promise.id": "ascii_bin",
        "durable_promise.name": "utf8mb4_bin",
        "durable_promise.known_as": "ascii_bin",
        "durable_outbox.namespace": "utf8mb4_bin",
        "durable_outbox.id": "utf8mb4_bin",
        "durable_outbox.task": "utf8mb4_bin",
        "durable_upkeep.namespace": "utf8mb4_bin",
        "durable_upkeep.owner": "ascii_bin",
        "durable_upkeep.progress": "ascii_bin",
    }
    assert {f"{table}.{column}" for table, column, kind, _ in columns if kind == "longblob"} == {
        "durable_payload.data",
        "durable_promise.data",
        "durable_outbox.data",
        "durable_journal.payload",
    }
    assert {f"{table}.{column}" for table, column, kind, _ in columns if kind == "binary"} == {
        "durable_journal.fingerprint",
        "durable_journal.key",
        "durable_guard.key",
        "durable_guard.fingerprint",
        "durable_execution.args_hash",
        "durable_promise.token_hash",
    }


# -- offline ----------------------------------------------------------------------------------------------------


def feed(database: JournalDatabase, sql: str) -> None:
    """What a database administrator does with a file of SQL."""
    if database.kind == "mysql":
        flags = {"client_flag": 65536}  # MULTI_STATEMENTS
        with database.engine(connect_args=flags, isolation_level="AUTOCOMMIT").connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute(sql)
            while cursor.nextset():
                pass
        return
    with database.engine(isolation_level="AUTOCOMMIT").connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.executescript(sql) if database.kind == "sqlite" else driver.execute(sql)


def test_the_printed_sql_does_what_the_upgrade_does(database: JournalDatabase):
    output = io.StringIO()
    migrations.upgrade(database.url, sql=True, output=output)
    for table in {*TABLES, VERSION}:
        assert f"CREATE TABLE {table} (" in output.getvalue()
    # All or nothing, where the database can.
    one_transaction = output.getvalue().startswith("BEGIN;") and output.getvalue().rstrip().endswith("COMMIT;")
    assert one_transaction == (database.kind != "mysql")
    engine = database.engine()
    assert tables(engine) == set()

    feed(database, output.getvalue())
    assert migrations.current(engine) == migrations.head()
    assert differences(engine) == []
    migrations.ensure(engine, create=False)
    printed = catalog(database.kind, engine)

    output = io.StringIO()
    migrations.downgrade(engine, f"{HEAD}:base", sql=True, output=output)
    feed(database, output.getvalue())
    assert not tables(engine) & TABLES

    migrations.upgrade(database.engine())
    assert catalog(database.kind, engine) == printed


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "mariadb+pymysql"])
def test_both_names_of_mysql_give_the_same_tables(scheme: str, capsys: pytest.CaptureFixture[str]):
    # Nothing listens there: nothing may connect.
    migrations.upgrade(f"{scheme}://root@127.0.0.1:1/shop", sql=True)
    sql = capsys.readouterr().out
    assert sql.count(")ENGINE=InnoDB CHARSET=utf8mb4;") == len(TABLES)
    assert sql.count("COLLATE utf8mb4_bin") == 9
    assert sql.count("COLLATE ascii_bin") == 8
    assert sql.count("LONGBLOB") == 4
    assert sql.count("BINARY(32)") == 6


def test_a_bad_url_is_refused_before_anything_happens():
    with pytest.raises(ConfigurationError, match="'oracle' cannot hold a journal"):
        migrations.upgrade("oracle://scott:tiger@host/name")


# -- ensure -----------------------------------------------------------------------------------------------------


def secretive(database: JournalDatabase) -> tuple[Engine, str]:
    """An engine whose URL has a password, and how a message may show that URL."""
    url = make_url(database.url)
    if database.kind == "postgresql" and url.password is None:
        url = url.set(password="hunter2")
    shown = url.render_as_string(hide_password=True)
    assert "hunter2" not in shown
    return sa.create_engine(url, poolclass=sa.pool.NullPool), shown


def test_missing_tables_are_told_with_the_command(database: JournalDatabase):
    engine, shown = secretive(database)
    message = (
        f"[CD002] the journal's tables are missing in {shown}. Create them with: celery -A <your app> durable upgrade"
    )
    with pytest.raises(SchemaError) as caught:
        migrations.ensure(engine, create=False)
    assert str(caught.value) == message
    # Also after somebody has taken them away.
    migrations.upgrade(engine)
    migrations.ensure(engine, create=False)
    migrations.downgrade(engine, "base")
    with pytest.raises(SchemaError) as caught:
        migrations.ensure(engine, create=False)
    assert str(caught.value) == message


def test_older_tables_are_told_with_both_revisions(database: JournalDatabase, scripts: Path):
    engine, shown = secretive(database)
    migrations.upgrade(engine)
    (scripts / f"{LATER}_next.py").write_text(NEXT)
    with pytest.raises(SchemaError) as caught:
        migrations.ensure(engine, create=False)
    assert str(caught.value) == (
        f"[CD002] the journal's tables in {shown} have revision '{HEAD}', this version of celery_durable needs "
        f"'{LATER}'. Upgrade them with: celery -A <your app> durable upgrade"
    )
    migrations.ensure(engine, create=True)
    assert migrations.current(engine) == LATER
    assert tables(engine) == {*TABLES, VERSION, "durable_later"}


@pytest.mark.parametrize("create", [False, True])
def test_newer_tables_are_told_with_the_cure(database: JournalDatabase, create: bool):
    engine, shown = secretive(database)
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE durable_version SET version_num = '0099'")
    with pytest.raises(SchemaError) as caught:
        migrations.ensure(engine, create=create)
    assert str(caught.value) == (
        f"[CD002] the journal's tables in {shown} have revision '0099', which this version of celery_durable does not "
        f"know (it needs '{HEAD}'). A newer version has upgraded them: upgrade celery_durable here too."
    )


def test_where_all_is_well_it_costs_one_query(database: JournalDatabase):
    migrations.upgrade(database.engine())
    engine = database.engine()
    with engine.connect():
        pass  # The dialect asks its own questions at the first connection.
    statements = []
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement))
    migrations.ensure(engine, create=True)
    assert [" ".join(statement.split()) for statement in statements] == [
        "SELECT durable_version.version_num FROM durable_version"
    ]


@pytest.mark.databases("sqlite")
def test_where_all_is_well_alembic_is_not_even_imported(database: JournalDatabase):
    migrations.upgrade(database.engine())
    program = (
        "import sys; from celery_durable.store import Database; "
        f"Database({database.url!r}).check_schema(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_tables_that_another_process_makes_meanwhile_are_found(database: JournalDatabase):
    engine = database.engine()
    errors = []

    def then_another_makes_them(context: sa.engine.ExceptionContext) -> None:
        errors.append(context.original_exception)
        migrations.upgrade(database.url)

    sa.event.listen(engine, "handle_error", then_another_makes_them)
    migrations.ensure(engine, create=False)
    assert len(errors) == 1


def test_another_error_is_not_taken_for_missing_tables(database: JournalDatabase):
    engine = database.engine()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE durable_version (another_column INTEGER)")
    with pytest.raises((exc.OperationalError, exc.ProgrammingError), match="version_num"):
        migrations.ensure(engine, create=True)


@pytest.mark.databases("postgresql", "mysql")
def test_a_lost_connection_is_not_taken_for_missing_tables(database: JournalDatabase):
    migrations.upgrade(database.engine())
    engine = database.engine()
    lose_connection(database, engine)
    with pytest.raises(exc.OperationalError):
        migrations.ensure(engine, create=False)
    migrations.ensure(engine, create=False)


def lose_connection(database: JournalDatabase, engine: Engine) -> None:
    """End the session that the engine's pool keeps."""
    kill = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}[database.kind]
    whoami = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}[database.kind]
    with engine.connect() as connection:
        session = connection.exec_driver_sql(whoami).scalar_one()
    with database.engine(isolation_level="AUTOCOMMIT").connect() as other:
        other.exec_driver_sql(kill.format(session))
    time.sleep(0.2)  # The server closes the connection by and by.


# -- several at once --------------------------------------------------------------------------------------------

PROCESSES = 8


def _race(urls: list[str], own_engine: bool, barrier: Barrier, results: Any) -> None:
    try:
        for url in urls:
            engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
            barrier.wait(90)
            if own_engine:
                migrations.ensure(engine, create=True)
            else:
                Database(url).check_schema()
    except threading.BrokenBarrierError:
        results.put("another one failed, or was late")
    except BaseException as error:
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")
    else:
        results.put(None)


def race(urls: list[str], own_engine: bool) -> list[str | None]:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_race, args=(urls, own_engine, barrier, results)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    said = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    return said


@pytest.mark.parametrize("own_engine", [True, False], ids=["plain", "Database"])
def test_processes_that_start_at_once_on_a_new_sqlite_file_all_find_the_tables(tmp_path: Path, own_engine: bool):
    files = [f"sqlite:///{tmp_path / f'{number}.db'}" for number in range(5)]
    assert race(files, own_engine) == [None] * PROCESSES
    for url in files:
        engine = sa.create_engine(url)
        assert tables(engine) == {*TABLES, VERSION}
        assert migrations.current(engine) == HEAD
        engine.dispose()


@pytest.mark.databases("postgresql", "mysql")
def test_processes_that_upgrade_a_server_at_once_all_succeed(database: JournalDatabase):
    assert race([database.url], own_engine=True) == [None] * PROCESSES
    engine = database.engine()
    assert differences(engine) == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM durable_version").scalars().all() == [HEAD]


def test_threads_that_make_several_databases_at_once_do_not_mix_them_up(tmp_path: Path):
    databases = [Database(f"sqlite:///{tmp_path / f'{number}.db'}") for number in range(20)]
    gate = threading.Barrier(len(databases))

    def check(database: Database) -> set[str]:
        gate.wait(30)
        database.check_schema()
        found = tables(database.engine)
        database.dispose()
        return found

    with ThreadPoolExecutor(len(databases)) as threads:
        assert list(threads.map(check, databases)) == [{*TABLES, VERSION}] * len(databases)


@contextmanager
def another_migrates(database: JournalDatabase) -> Iterator[None]:
    take = {"postgresql": running._TAKE_LOCK_POSTGRESQL, "mysql": running._TAKE_LOCK_MYSQL}[database.kind]
    with sa.create_engine(database.url, poolclass=sa.pool.NullPool).connect() as connection:
        assert connection.exec_driver_sql(take).scalar()
        yield


@pytest.mark.databases("postgresql", "mysql")
def test_an_upgrade_waits_for_another_one_but_not_for_ever(database: JournalDatabase, monkeypatch: pytest.MonkeyPatch):
    engine, shown = secretive(database)
    monkeypatch.setattr(running, "_PATIENCE", 0.3)
    with another_migrates(database):
        with pytest.raises(SchemaError) as caught:
            migrations.upgrade(engine)
        assert str(caught.value) == (
            f"[CD002] another process has been migrating the journal's tables in {shown} for more than 0.3 s. "
            "Wait for it, or end it, and try again."
        )
        assert tables(engine) == set()

        monkeypatch.setattr(running, "_PATIENCE", 30)
        waiting = threading.Thread(target=migrations.upgrade, args=(engine,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert tables(engine) == set()
    waiting.join(30)
    assert tables(engine) == {*TABLES, VERSION}


@pytest.mark.databases("mysql")
def test_an_upgrade_of_another_database_on_the_server_is_not_waited_for(
    database: JournalDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running, "_PATIENCE", 0)
    elsewhere = make_url(database.url).set(database="information_schema").render_as_string(hide_password=False)
    with another_migrates(JournalDatabase("mysql", elsewhere, database.version)):
        migrations.upgrade(database.url)


def test_a_migration_that_fails_leaves_the_old_tables_and_no_lock(database: JournalDatabase, scripts: Path):
    engine = database.engine()
    migrations.upgrade(engine)
    (scripts / f"{LATER}_next.py").write_text(FAILING)
    with pytest.raises(RuntimeError, match="in the middle"):
        migrations.upgrade(engine)
    assert migrations.current(engine) == HEAD
    if database.kind != "mysql":  # Its CREATE TABLE cannot be rolled back.
        assert tables(engine) == {*TABLES, VERSION}
        (scripts / f"{LATER}_next.py").write_text(NEXT)
        migrations.upgrade(database.url)
        assert migrations.current(engine) == LATER
    else:
        migrations.upgrade(database.url, HEAD)


# -- in the company of others -----------------------------------------------------------------------------------


def test_an_application_keeps_its_own_alembic(database: JournalDatabase):
    engine = database.engine()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('5f1c0ffee')")
    migrations.ensure(engine, create=True)
    migrations.downgrade(engine, "base")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM alembic_version").scalars().all() == ["5f1c0ffee"]


LOGGING = """
import logging, sys
from celery_durable.store import migrations
from celery_durable.store.migrations import running

def state():
    loggers = [logging.getLogger(name) for name in ("", "mine", "alembic", "alembic.runtime.migration", "sqlalchemy")]
    return logging.root.manager.disable, [
        (logger.level, logger.disabled, logger.propagate, list(logger.handlers)) for logger in loggers
    ]

before = state()
migrations.upgrade(sys.argv[1])
migrations.downgrade(sys.argv[1], "base")
print(state() == before)
"""


@pytest.mark.databases("sqlite")
def test_the_logging_of_the_application_is_left_alone(database: JournalDatabase):
    # In a process of its own: here it may have happened long ago.
    done = subprocess.run([sys.executable, "-c", LOGGING, database.url], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.databases("postgresql")
def test_the_schema_that_the_url_names_is_used_by_upgrade_and_journal_alike(database: JournalDatabase):
    with database.engine().begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA apart")
    url = (
        make_url(database.url)
        .update_query_dict({"options": "-csearch_path=apart"})
        .render_as_string(hide_password=False)
    )
    migrations.upgrade(url)
    journal = Database(url)
    journal.check_schema()
    assert journal.read(lambda connection: connection.exec_driver_sql("SHOW search_path").scalar()) == "apart"
    assert journal.read(lambda connection: connection.exec_driver_sql("SHOW statement_timeout").scalar()) == "5s"
    assert (
        journal.write(lambda connection: connection.exec_driver_sql("SHOW transaction_isolation").scalar())
        == "read committed"
    )
    journal.dispose()
    assert tables(database.engine()) == set()


# -- the connection, where there is a server --------------------------------------------------------------------


@pytest.fixture
def journal(database: JournalDatabase) -> Iterator[Database]:
    migrations.upgrade(database.url)
    opened = Database(database.url)
    yield opened
    opened.dispose()


@pytest.mark.databases("postgresql", "mysql")
def test_work_on_a_lost_connection_is_done_on_another(database: JournalDatabase, journal: Database):
    journal.check_schema()
    for run in (journal.write, journal.read):
        lose_connection(database, journal.engine)
        tries = []

        def work(connection: sa.Connection, tries: list[int] = tries) -> Any:
            tries.append(1)
            return connection.exec_driver_sql("SELECT 42").scalar()

        assert run(work) == 42
        # Some drivers notice before the work begins.
        assert 1 <= len(tries) <= 2


@pytest.mark.databases("postgresql", "mysql")
def test_work_that_lost_its_connection_half_way_is_committed_once(database: JournalDatabase, journal: Database):
    with database.engine().begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    kill = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}[database.kind]
    whoami = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}[database.kind]
    tries = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        if len(tries) == 1:
            session = connection.exec_driver_sql(whoami).scalar_one()
            with database.engine(isolation_level="AUTOCOMMIT").connect() as other:
                other.exec_driver_sql(kill.format(session))
            time.sleep(0.2)
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")

    journal.write(work)
    with database.engine().connect() as connection:
        assert sorted(connection.exec_driver_sql("SELECT x FROM t").scalars()) == [1, 2]
    assert len(tries) == 2


@pytest.mark.databases("postgresql", "mysql")
def test_missing_tables_on_a_server_are_not_created_unasked(database: JournalDatabase):
    journal = Database(database.url)
    began = time.monotonic()
    with pytest.raises(SchemaError, match=r"the journal's tables are missing in .* durable upgrade$"):
        journal.read(lambda connection: None)
    assert time.monotonic() - began < 2  # At once: no waiting brings them.
    assert tables(journal.engine) == set()
    migrations.upgrade(database.url)
    assert journal.read(lambda connection: connection.scalar(sa.select(sa.literal(1)))) == 1
    journal.dispose()


#: Session settings that must not matter.
SESSIONS = {
    "sqlite": ["SELECT 1"],
    "postgresql": ["SET TIME ZONE '+05:00'", "SET TIME ZONE 'America/New_York'"],
    "mysql": ["SET time_zone = '+05:00'", "SET time_zone = '-11:00'"],
}


def test_the_database_tells_the_time_in_utc_milliseconds_whatever_the_session_says(
    database: JournalDatabase, journal: Database
):
    for setting in SESSIONS[database.kind]:

        def ask(connection: sa.Connection, setting: str = setting) -> Any:
            connection.exec_driver_sql(setting)
            return connection.scalar(sa.select(now_ms()))

        for run in (journal.write, journal.read):
            told = run(ask)
            assert type(told) is int
            # The machine of the database may be another one.
            assert abs(told - time.time() * 1000) < 60_000


def test_the_database_s_clock_goes_forward(database: JournalDatabase, journal: Database):
    def ask(connection: sa.Connection) -> Any:
        first = connection.scalar(sa.select(now_ms()))
        time.sleep(0.2)
        return connection.scalar(sa.select(now_ms())) - first

    # Also inside one transaction: one that waited for a lock must not use the time at which it began.
    assert 195 <= journal.write(ask) < 5_000
    assert 195 <= journal.read(ask) < 5_000
