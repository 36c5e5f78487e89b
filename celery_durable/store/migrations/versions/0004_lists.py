"""Indexes for what people list: executions by state, and by task.

Written out, not taken from ``tables.py``: a migration says what was true when it was made.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SHELF = ("state", "pruned_at", "pk")


def upgrade() -> None:
    """Add them."""
    op.create_index("ix_durable_execution_state", "durable_execution", ["namespace", *_SHELF])
    op.create_index("ix_durable_execution_task", "durable_execution", ["namespace", "task", *_SHELF])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_durable_execution_task", "durable_execution")
    op.drop_index("ix_durable_execution_state", "durable_execution")
