"""The mail provider: what it gets it sends, as often as it gets it."""

from __future__ import annotations

from typing import Any

from .main import main
from .service import Reply, Service, required


class Mailer(Service):
    """``POST /mails`` sends."""

    name = "mailer"
    paths = ("/mails",)
    default_port = 8703
    schema = """
    CREATE TABLE IF NOT EXISTS mails (
        number INTEGER PRIMARY KEY, reference TEXT NOT NULL, recipient TEXT NOT NULL, tag TEXT NOT NULL,
        subject TEXT NOT NULL);
    """
    query = "SELECT 'ma_' || number AS id, reference, recipient, tag, subject FROM mails ORDER BY number"

    def enter(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Send a mail; ``tag`` says what it is about."""
        reference, to = required(body, "reference", str), required(body, "to", str)
        tag, subject = required(body, "tag", str), required(body, "subject", str)
        with self.ledger.transaction() as db:
            number = db.execute(
                "INSERT INTO mails (reference, recipient, tag, subject) VALUES (?, ?, ?, ?)",
                (reference, to, tag, subject),
            ).lastrowid
        return Reply(201, {"id": f"ma_{number}", "reference": reference}, "sent")


if __name__ == "__main__":
    main(Mailer)
