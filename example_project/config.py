"""Everything the shop takes from its environment, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: The folder that holds the package; workers and services are started from here.
ROOT = Path(__file__).parent.parent

TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Config:
    """The shop's settings."""

    #: Working directory: the shop's own database, and on the embedded default broker, journal and results too.
    directory: Path
    #: Celery broker URL; the default is a folder of files, which needs no server.
    broker: str
    #: SQLAlchemy URL of the journal; the default is an SQLite file.
    database: str
    #: Celery result backend; the default is a folder of files.
    result_backend: str
    #: Write executions to the journal before the broker knows of them.
    outbox: bool
    #: Seconds after which a silent worker counts as dead.
    lease_timeout: float
    #: Name of the queue, and of the shop's part of a shared journal.
    namespace: str
    #: Seconds after which a customer who has not paid is reminded.
    remind_after: float
    #: Where the outside services answer, and the shop's own front desk.
    gateway_url: str
    carrier_url: str
    mailer_url: str
    desk_url: str
    #: From it the tokens of promises are derived, so that the journal does not hold them.
    secret: str

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Config:
        """Build the settings; every variable has a default that needs no server."""
        directory = Path(env.get("SHOP_DIR") or ".demo").absolute()
        broker = env.get("BROKER") or "filesystem://"
        return cls(
            directory=directory,
            broker=broker,
            database=env.get("DATABASE") or f"sqlite:///{directory / 'journal.db'}",
            result_backend=env.get("RESULT_BACKEND") or f"file://{directory / 'results'}",
            # A killed worker takes with it the orders that it had received and not begun. RabbitMQ delivers them
            # again at once, Redis after its visibility time-out (an hour), the folder of files never. With the
            # outbox an order is in the journal before the broker knows of it, and none of this matters.
            outbox=env.get("OUTBOX", "1").lower() in TRUE,
            lease_timeout=float(env.get("LEASE_TIMEOUT") or 3),
            namespace=env.get("SHOP_NAMESPACE") or "shop",
            # Two days would be polite. The demo has a minute.
            remind_after=float(env.get("REMIND_AFTER") or 2),
            gateway_url=env.get("GATEWAY_URL") or "http://127.0.0.1:8701",
            carrier_url=env.get("CARRIER_URL") or "http://127.0.0.1:8702",
            mailer_url=env.get("MAILER_URL") or "http://127.0.0.1:8703",
            desk_url=env.get("DESK_URL") or "http://127.0.0.1:8704",
            secret=env.get("SHOP_SECRET") or "not a secret at all, for it is in the source",
        )

    @property
    def embedded_broker(self) -> bool:
        """Whether the broker is the folder of files."""
        return self.broker.startswith("filesystem")

    @property
    def embedded_database(self) -> bool:
        """Whether the journal is an SQLite file, which makes its tables itself."""
        return self.database.startswith("sqlite")

    @property
    def shop_db(self) -> Path:
        """The shop's own database: orders, reservations, invoices."""
        return self.directory / "shop.db"

    def make_directories(self) -> None:
        """Create what the embedded broker and result backend expect to exist."""
        for name in ("results", "broker/messages", "broker/processed", "broker/control"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
