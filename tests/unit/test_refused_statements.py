"""What the operation of a transactional step must not say to the database."""

from __future__ import annotations

import contextlib

import pytest

from celery_durable import TransactionMisused
from celery_durable.store.transaction_guard import refuse_end


@pytest.mark.parametrize(
    ("statement", "ends"),
    [
        ("COMMIT", True),
        (" -- at last\n commit and chain", True),
        ("/* a * b **/ ROLLBACK WORK", True),
        ("end;", True),
        ("BEGIN", True),
        ("Start  Transaction read only", True),
        ("PREPARE TRANSACTION 'one'", True),
        ("ROLLBACK TO SAVEPOINT one", False),
        ("rollback work to one", False),
        ("SAVEPOINT one", False),
        ("INSERT INTO t VALUES (1); commit", True),
        ("SELECT 1;\n-- now\nCOMMIT; BEGIN", True),
        ("/*! COMMIT */", True),
        ("/*!50000 commit */", True),
        ("/*M!100300 rollback */", True),
        ("SET autocommit=1", True),
        ("set session autocommit = 1", True),
        ("SET @@autocommit = ON", True),
        ("INSERT INTO t VALUES ('; COMMIT')", False),
        ("INSERT INTO t VALUES ('it''s; COMMIT')", False),
        ("INSERT INTO t VALUES ('it\\'s; COMMIT')", False),
        ("INSERT INTO t VALUES ('C:\\', '; COMMIT')", False),
        ("SELECT 1; -- COMMIT", False),
        ("SELECT $x$; COMMIT$x$", False),
        ("DO $$ BEGIN PERFORM 1; END $$", False),
        ("CREATE TRIGGER t AFTER INSERT ON t BEGIN SELECT 1; END", False),
        ("SELECT 1; ROLLBACK TO SAVEPOINT one", False),
        ("SET autocommitted = 1", False),
        ("LOCK TABLES t WRITE", True),
        ("LOCK TABLE t", False),
        ("RELEASE SAVEPOINT one", False),
        ("BEGIN NOT ATOMIC SELECT 1; END", False),
        ("SELECT 'COMMIT'", False),
        ("committed", False),
        ("-- COMMIT", False),
        ("/* " + "*/ /* " * 10_000, False),
    ],
)
def test_statements_that_end_a_transaction_are_known(statement: str, ends: bool) -> None:
    with pytest.raises(TransactionMisused) if ends else contextlib.nullcontext():
        refuse_end(statement)


@pytest.mark.parametrize("dialect", ["mysql", "postgresql"])
@pytest.mark.parametrize(
    ("statement", "ends"),
    [
        ("CREATE TABLE t (a INT)", True),
        ("# a comment\n drop table t", True),
        ("truncate t", True),
        ("CREATE TEMPORARY TABLE t (a INT)", False),
        ("create or replace temporary table t (a INT)", False),
        ("SELECT 1", False),
    ],
)
def test_statements_that_commit_by_themselves_on_one_of_them(statement: str, ends: bool, dialect: str) -> None:
    with pytest.raises(TransactionMisused) if ends and dialect == "mysql" else contextlib.nullcontext():
        refuse_end(statement, dialect)
