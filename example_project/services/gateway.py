"""The payment gateway: takes money, and honours ``Idempotency-Key`` as real ones do."""

from __future__ import annotations

from typing import Any

from .main import main
from .service import BadRequest, Reply, Service, required


class Gateway(Service):
    """``POST /charges``; the same key with the same request gets the first answer again and moves no money."""

    name = "gateway"
    path = "/charges"
    default_port = 8701
    schema = """
    CREATE TABLE IF NOT EXISTS charges (
        number INTEGER PRIMARY KEY, reference TEXT NOT NULL, amount_cents INTEGER NOT NULL, key TEXT UNIQUE);
    """
    query = "SELECT 'ch_' || number AS id, reference, amount_cents, key FROM charges ORDER BY number"

    def enter(self, body: dict[str, Any], key: str | None) -> Reply:
        """Charge, or repeat the answer to this key. Without a key every request is a charge."""
        reference, amount = required(body, "reference", str), required(body, "amount_cents", int)
        if amount <= 0:
            raise BadRequest("'amount_cents' must be positive")
        with self.ledger.transaction() as db:
            known = db.execute("SELECT * FROM charges WHERE key = ?", (key,)).fetchone()
            if known is None:
                made = db.execute(
                    "INSERT INTO charges (reference, amount_cents, key) VALUES (?, ?, ?)", (reference, amount, key)
                )
                number = made.lastrowid
            elif (known["reference"], known["amount_cents"]) != (reference, amount):
                raise BadRequest("this Idempotency-Key was used for another charge", 422)
            else:
                number = known["number"]
        answer = {"id": f"ch_{number}", "reference": reference, "amount_cents": amount}
        return Reply(201 if known is None else 200, answer, "charged" if known is None else "repeated")


if __name__ == "__main__":
    main(Gateway)
