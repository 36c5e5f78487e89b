"""What the operation of a transactional step must not say to the database."""

from __future__ import annotations

import contextlib

import pytest

from celery_durable import TransactionMisused
from celery_durable.store.transactions import refuse_end


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
