"""The carrier: every booking is a new parcel. It knows no keys, but tells what it has."""

from __future__ import annotations

from typing import Any

from .main import main
from .service import Reply, Service, required


class Carrier(Service):
    """``POST /parcels`` books, ``GET /parcels?reference=`` tells."""

    name = "carrier"
    paths = ("/parcels",)
    default_port = 8702
    schema = """
    CREATE TABLE IF NOT EXISTS parcels (
        number INTEGER PRIMARY KEY, reference TEXT NOT NULL, recipient TEXT NOT NULL);
    """
    query = "SELECT 'pa_' || number AS id, reference, recipient FROM parcels ORDER BY number"

    def enter(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Book a parcel, whatever was booked before."""
        reference, recipient = required(body, "reference", str), required(body, "recipient", str)
        with self.ledger.transaction() as db:
            number = db.execute(
                "INSERT INTO parcels (reference, recipient) VALUES (?, ?)", (reference, recipient)
            ).lastrowid
        return Reply(201, {"id": f"pa_{number}", "reference": reference}, "booked")


if __name__ == "__main__":
    main(Carrier)
