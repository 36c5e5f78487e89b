"""The payment gateway: takes money, gives it back, and honours ``Idempotency-Key`` as real ones do."""

from __future__ import annotations

import sqlite3
from typing import Any

from .main import main
from .service import BadRequest, Reply, Service, required


class Gateway(Service):
    """``POST /charges`` and ``POST /refunds``; the same key with the same request gets the first answer again and
    moves no money.

    Only keys protect from moving money twice: with another one, a charge is refunded as often as it is asked for.
    """

    name = "gateway"
    paths = ("/charges", "/refunds")
    default_port = 8701
    schema = """
    CREATE TABLE IF NOT EXISTS movements (
        number INTEGER PRIMARY KEY, entry TEXT NOT NULL, reference TEXT NOT NULL, amount_cents INTEGER NOT NULL,
        charge_id TEXT, key TEXT UNIQUE);
    """
    query = """
    SELECT CASE entry WHEN 'charge' THEN 'ch_' ELSE 're_' END || number AS id, entry, reference, amount_cents,
        charge_id, key FROM movements ORDER BY number
    """

    def enter(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Move the money, or repeat the answer to this key. Without a key every request is another one."""
        reference, amount = required(body, "reference", str), required(body, "amount_cents", int)
        if amount <= 0:
            raise BadRequest("'amount_cents' must be positive")
        entry, charge_id = ("charge", None) if path == "/charges" else ("refund", required(body, "charge_id", str))
        wanted = (entry, reference, amount, charge_id)
        with self.ledger.transaction() as db:
            known = db.execute("SELECT * FROM movements WHERE key = ?", (key,)).fetchone()
            if known is None:
                number = self._move(db, wanted, key)
            elif (known["entry"], known["reference"], known["amount_cents"], known["charge_id"]) != wanted:
                raise BadRequest(f"this Idempotency-Key was used for another {known['entry']}", 422)
            else:
                number = known["number"]
        prefix, done = ("ch", "charged") if entry == "charge" else ("re", "refunded")
        answer = {"id": f"{prefix}_{number}", "reference": reference, "amount_cents": amount}
        return Reply(201, answer, done) if known is None else Reply(200, answer, "repeated")

    @staticmethod
    def _move(db: sqlite3.Connection, wanted: tuple[str, str, int, str | None], key: str | None) -> int:
        entry, reference, _, charge_id = wanted
        if entry == "refund":
            query = "SELECT 1 FROM movements WHERE entry = 'charge' AND 'ch_' || number = ? AND reference = ?"
            if db.execute(query, (charge_id, reference)).fetchone() is None:
                raise BadRequest(f"there is no charge {charge_id} for {reference}", 404)
        made = db.execute(
            "INSERT INTO movements (entry, reference, amount_cents, charge_id, key) VALUES (?, ?, ?, ?, ?)",
            (*wanted, key),
        )
        assert made.lastrowid is not None
        return made.lastrowid


if __name__ == "__main__":
    main(Gateway)
