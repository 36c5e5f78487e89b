"""The shop's own data, in an SQLite file of its own: orders, stock, reservations, invoices.

Every write here is idempotent (keyed by the order), which is why the steps that use it need no guard.
"""

from __future__ import annotations

import dataclasses
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, reference TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, email TEXT NOT NULL,
    sku TEXT NOT NULL, quantity INTEGER NOT NULL, total_cents INTEGER NOT NULL, pays_later INTEGER NOT NULL);
CREATE TABLE stock (sku TEXT PRIMARY KEY, available INTEGER NOT NULL CHECK (available >= 0));
CREATE TABLE reservations (order_id INTEGER PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL);
CREATE TABLE invoices (
    order_id INTEGER PRIMARY KEY, number TEXT NOT NULL UNIQUE, charge_id TEXT NOT NULL, tracking TEXT NOT NULL);
"""

PRICES = {"teapot": 3490, "kettle": 5950, "cup": 890, "tray": 2275}
#: Orders of more than this wait for an approval.
APPROVAL_LIMIT = 6_000
NAMES = ("Ada", "Blaise", "Chen", "Dorothy", "Edsger", "Frances", "Grace", "Haskell", "Ida", "John")


@dataclass(frozen=True)
class Order:
    """What a customer ordered."""

    id: int
    #: The name under which the outside world knows the order.
    reference: str
    customer: str
    email: str
    sku: str
    quantity: int
    total_cents: int
    #: The customer gets a link to pay with; the others have given their card.
    pays_later: bool = False

    @property
    def needs_approval(self) -> bool:
        """Whether somebody of the shop has to look at it first."""
        return self.total_cents > APPROVAL_LIMIT

    def parcel(self, item: int) -> str:
        """The name under which the carrier knows the parcel of one item, counted from 1."""
        return f"{self.reference}/{item}"

    @property
    def cannot_be_found(self) -> bool:
        """Whether the shelf turns out to be empty, although the stock says otherwise. Every tenth order has the bad
        luck, by its number, so that everybody who looks at it comes to the same conclusion.
        """
        return self.id % 10 == 7


class OutOfStock(Exception):
    """The goods are not on the shelf; nothing can be done about it."""


class UnknownOrder(LookupError):
    """There is no order with this number."""


class Shop:
    """The shop's database; opened for each call, so that it can be used from any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=15, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=15, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            yield db

    def create(self, orders: list[Order], stock: int = 10_000) -> None:
        """Make the tables and fill them."""
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)
        with self._database() as db:
            db.executemany("INSERT INTO stock VALUES (?, ?)", [(sku, stock) for sku in PRICES])
            rows = [dataclasses.astuple(order) for order in orders]
            db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def order(self, order_id: int) -> Order:
        """Read one order."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone()
        if row is None:
            raise UnknownOrder(f"no order has the number {order_id}")
        return Order(**{**dict(row), "pays_later": bool(row["pays_later"])})

    def reserve(self, order: Order) -> None:
        """Take the goods out of the stock, once per order however often it is called."""
        with self._database() as db:
            inserted = db.execute(
                "INSERT OR IGNORE INTO reservations VALUES (?, ?, ?)", (order.id, order.sku, order.quantity)
            )
            if inserted.rowcount:
                db.execute("UPDATE stock SET available = available - ? WHERE sku = ?", (order.quantity, order.sku))

    def release(self, order: Order) -> None:
        """Put the reserved goods back into the stock, once however often it is called."""
        with self._database() as db:
            if db.execute("DELETE FROM reservations WHERE order_id = ?", (order.id,)).rowcount:
                db.execute("UPDATE stock SET available = available + ? WHERE sku = ?", (order.quantity, order.sku))

    def pick(self, order: Order) -> None:
        """Take the goods from the shelf.

        :raises OutOfStock: they are not there.
        """
        if order.cannot_be_found:
            raise OutOfStock(f"there is no {order.sku} on the shelf for {order.reference}")

    def write_invoice(self, order: Order, charge_id: str, tracking: str) -> str:
        """Write the order's one invoice and return its number."""
        number = f"INV-{order.id:05d}"
        with self._database() as db:
            db.execute("INSERT OR REPLACE INTO invoices VALUES (?, ?, ?, ?)", (order.id, number, charge_id, tracking))
        return number

    def invoiced(self) -> set[int]:
        """Numbers of the orders that have an invoice."""
        with self._reading() as db:
            return {row["order_id"] for row in db.execute("SELECT order_id FROM invoices")}

    def reserved(self) -> dict[int, int]:
        """Pieces that are reserved for each order."""
        with self._reading() as db:
            return {row["order_id"]: row["quantity"] for row in db.execute("SELECT * FROM reservations")}

    def available(self) -> dict[str, int]:
        """Pieces of each article that are left in the stock."""
        with self._reading() as db:
            return {row["sku"]: row["available"] for row in db.execute("SELECT * FROM stock")}


def invent_orders(count: int, seed: int) -> list[Order]:
    """Make up ``count`` orders; the same seed makes the same orders."""
    rng = random.Random(seed)
    orders = []
    for number in range(1, count + 1):
        sku, quantity, name = rng.choice(sorted(PRICES)), rng.randint(1, 3), rng.choice(NAMES)
        email, total = f"{name.lower()}.{number}@example.org", PRICES[sku] * quantity
        pays_later = number % 4 == 3
        orders.append(Order(number, f"order-{number:03d}", name, email, sku, quantity, total, pays_later))
    return orders
