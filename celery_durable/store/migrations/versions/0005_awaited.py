"""An index for what an execution waits for, so that one look finds whether any promise is left.

Written out, not taken from ``tables.py``: a migration says what was true when it was made.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it, and drop the index that is its prefix."""
    op.create_index("ix_durable_promise_awaited", "durable_promise", ["pk", "awaited", "state"])
    op.drop_index("ix_durable_promise_pk", "durable_promise")


def downgrade() -> None:
    """The other way round."""
    op.create_index("ix_durable_promise_pk", "durable_promise", ["pk"])
    op.drop_index("ix_durable_promise_awaited", "durable_promise")
