"""A table of the application's own, which transactional steps write."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Account", "Base", "balances_in"]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "shop_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


def balances_in(engine: Engine) -> dict[int, int]:
    """What is committed."""
    with engine.connect() as connection:
        return {row.id: row.balance for row in connection.execute(sa.select(Account.id, Account.balance))}
