"""The front desk: a web page on which people answer what an order waits for.

``POST /questions`` is for the shop: it puts a question on the page, with the id and token of the promise that waits for
the answer. ``POST /answers`` is what the buttons on the page send. Whoever answers needs the token and nothing else, no
worker and no connection to one: :func:`celery_durable.resolve` writes the answer into the journal and sends the order
back to work.
"""

from __future__ import annotations

import html
import time
from typing import Any, ClassVar, NamedTuple

from celery import Celery

import celery_durable
from celery_durable import PromiseSettled, WrongToken

from .main import main
from .service import BadRequest, Reply, Service, required


class Kind(NamedTuple):
    """A kind of question: its heading on the page, and the buttons below each question (answer, label)."""

    title: str
    buttons: tuple[tuple[str, str], ...]


KINDS = {
    "approval": Kind("Large orders that need an approval", (("yes", "Approve"), ("no", "Refuse"))),
    "payment": Kind("Orders whose customers have not paid yet", (("yes", "Pay"),)),
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="3"><title>The shop's front desk</title>
<style>body {{ font: 1rem sans-serif; margin: 2rem auto; max-width: 44rem; padding: 0 1rem }}
form {{ border-bottom: 1px solid #ccc; display: flex; gap: .5rem; padding: .5rem 0 }} form span {{ flex: 1 }}</style>
</head><body><h1>The shop's front desk</h1>
{sections}
<p>{answered} answered so far. This page looks again every three seconds.</p>
</body></html>
"""

FORM = """<form method="post" action="/answers"><span>{text}</span>
<input type="hidden" name="promise" value="{promise}"><input type="hidden" name="token" value="{token}">
<input type="hidden" name="kind" value="{kind}"><input type="hidden" name="reference" value="{reference}">
{buttons}</form>"""


class Desk(Service):
    """``POST /questions`` asks, ``GET /`` is the page, ``POST /answers`` answers."""

    name = "desk"
    paths = ("/questions", "/answers")
    default_port = 8704
    #: The Celery application whose promises are kept; None: the current one.
    app: ClassVar[Celery | None] = None
    schema = """
    CREATE TABLE IF NOT EXISTS questions (
        promise TEXT PRIMARY KEY, token TEXT NOT NULL, kind TEXT NOT NULL, reference TEXT NOT NULL, text TEXT NOT NULL,
        asked_at REAL NOT NULL, answer TEXT, answered_at REAL);
    """
    # Without the token: whoever has it can answer.
    query = """
    SELECT promise AS id, kind, reference, text, asked_at, answer, answered_at FROM questions ORDER BY asked_at
    """

    def enter(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """Put a question on the page, once however often it is asked; or take an answer."""
        promise, token = required(body, "promise", str), required(body, "token", str)
        if path == "/answers":
            return self._answer(promise, token, required(body, "answer", str))
        kind, reference = required(body, "kind", str), required(body, "reference", str)
        if kind not in KINDS:
            raise BadRequest(f"'kind' must be one of {', '.join(KINDS)}")
        row = (promise, token, kind, reference, required(body, "text", str), time.time())
        with self.ledger.transaction() as db:
            asked = db.execute(
                "INSERT OR IGNORE INTO questions (promise, token, kind, reference, text, asked_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).rowcount
        return Reply(201, {"id": promise}, "asked") if asked else Reply(200, {"id": promise}, "asked before")

    def _answer(self, promise: str, token: str, answer: str) -> Reply:
        if answer not in ("yes", "no"):
            raise BadRequest("'answer' must be yes or no")
        try:
            if answer == "yes":
                celery_durable.resolve(promise, token, "the front desk", app=self.app)
            else:
                celery_durable.reject(promise, token, "refused at the front desk", app=self.app)
        except WrongToken as error:
            raise BadRequest(str(error), 403) from None
        except PromiseSettled as error:
            self._note(promise, "settled elsewhere")
            raise BadRequest(str(error), 409) from None
        # Should this process die here, the question is still on the page. To give the same answer again is no error,
        # and another one does not change the first.
        self._note(promise, answer)
        # Back to the page, as a browser expects it after a form.
        return Reply(303, {"id": promise}, "answered", {"Location": "/"})

    def _note(self, promise: str, answer: str) -> None:
        with self.ledger.transaction() as db:
            db.execute(
                "UPDATE questions SET answer = ?, answered_at = ? WHERE promise = ? AND answer IS NULL",
                (answer, time.time(), promise),
            )

    def get(self, path: str, query: dict[str, str]) -> Reply:
        """Answer a GET: ``/`` is the page."""
        return Reply(200, self.page(), "read") if path == "/" else super().get(path, query)

    def page(self) -> str:
        """Everything that waits for an answer, with buttons."""
        questions = self.ledger.rows("SELECT * FROM questions ORDER BY asked_at")
        sections = ""
        for kind, (title, buttons) in KINDS.items():
            waiting = [row for row in questions if row["kind"] == kind and row["answer"] is None]
            shown = "".join(f'<button name="answer" value="{answer}">{label}</button>' for answer, label in buttons)
            forms = "\n".join(
                FORM.format(buttons=shown, **{name: html.escape(str(value)) for name, value in row.items()})
                for row in waiting
            )
            sections += f"<h2>{title}</h2>\n{forms or '<p>None now.</p>'}\n"
        return PAGE.format(sections=sections, answered=sum(row["answer"] is not None for row in questions))


if __name__ == "__main__":
    # Its settings come from the environment, of which the other services know nothing.
    from ..app import app

    Desk.app = app
    main(Desk)
