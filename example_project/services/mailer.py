"""The mail provider: what it gets it sends, as often as it gets it."""

from __future__ import annotations

from typing import Any

from .main import main
from .service import Reply, Service, required


class Mailer(Service):
    """``POST /mails`` sends."""

    name = "mailer"
    path = "/mails"
    default_port = 8703
    schema = """
    CREATE TABLE IF NOT EXISTS mails (
        number INTEGER PRIMARY KEY, reference TEXT NOT NULL, recipient TEXT NOT NULL, subject TEXT NOT NULL);
    """
    query = "SELECT 'ma_' || number AS id, reference, recipient, subject FROM mails ORDER BY number"

    def enter(self, body: dict[str, Any], key: str | None) -> Reply:
        """Send a mail."""
        reference, to = required(body, "reference", str), required(body, "to", str)
        subject = required(body, "subject", str)
        with self.ledger.transaction() as db:
            number = db.execute(
                "INSERT INTO mails (reference, recipient, subject) VALUES (?, ?, ?)", (reference, to, subject)
            ).lastrowid
        return Reply(201, {"id": f"ma_{number}", "reference": reference}, "sent")


if __name__ == "__main__":
    main(Mailer)
