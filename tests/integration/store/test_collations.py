"""What a database's collation takes for one is two all the same: ids, and the owners of dead processes."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable import ConfigurationError, UnknownExecution
from celery_durable.runtime.leases import owner_prefix
from tests.support.delivery import Delivery
from tests.support.lab import Lab, everywhere


@everywhere
@pytest.mark.parametrize("other", ["one ", "ONE", "oné", "one\u200b"])
def test_another_id_is_nobodys(lab: Lab, other: str):
    """MariaDB overlooks blanks at the end, and other collations case, accents, or what cannot be seen."""
    lab.run(lambda context: "the first", id="one")
    with pytest.raises(UnknownExecution):
        lab.operations.get(other)
    with pytest.raises(UnknownExecution):
        lab.operations.cancel(other, "a mistake")
    if other == other.strip() and other.isprintable():
        assert lab.run(lambda context: "the second", id=other) == "the second"
    else:
        with pytest.raises(ConfigurationError, match="task id"):
            lab.run(lambda context: "the second", id=other)
    assert lab.run(lambda context: "once more", id="one") == "the first"


@pytest.mark.databases("postgresql")
@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("collation", ["C", "en-x-icu", "und-x-icu"])
def test_a_dead_process_is_recognised_whatever_the_order_of_letters(lab: Lab, deliver: Delivery, collation: str):
    """ICU's order overlooks punctuation at first, of which the ids of owners are full."""
    with lab.runtime.database.engine.begin() as connection:
        connection.execute(
            sa.text(f'ALTER TABLE durable_execution ALTER COLUMN owner TYPE varchar(96) COLLATE "{collation}"')
        )
    forsake = lab.runtime.recovery.forsake
    counted: list[int] = []

    def body(context: object) -> str:
        counted.append(forsake(owner_prefix().replace(":", ":9", 1)))
        counted.append(forsake(owner_prefix()[:-2] + "x:"))
        counted.append(forsake(owner_prefix()))
        return "done"

    deliver(body)
    assert counted == [0, 0, 1]
