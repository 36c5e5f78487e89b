"""Plays the people: opens the front desk's page as a browser does, and presses its buttons."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser

from .watch import Watch


class Forms(HTMLParser):
    """The forms of a page: for each, its hidden fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect forms and what they would send."""
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append({})
        elif tag == "input" and self.found:
            self.found[-1][attributes["name"]] = attributes["value"]


class People(Watch):
    """Answer every question on the page after a while: the owner approves or refuses, customers pay.

    :param url: of the front desk.
    :param remind_after: seconds after which the shop reminds those who have not paid.
    """

    #: Seconds between two looks at the page.
    INTERVAL = 0.2
    #: Seconds that the owner, and a customer who pays at once, think about it.
    THINKS, PAYS = 1.0, 0.5
    #: Every so many-th large order is refused, by its number; every other customer pays only after the reminder.
    REFUSED, LATE = 4, 2

    def __init__(self, url: str, remind_after: float) -> None:
        super().__init__("people")
        self._url = url
        self._remind_after = remind_after
        self._seen: dict[str, float] = {}

    def _look(self) -> None:
        with urllib.request.urlopen(self._url, timeout=15) as reply:
            forms = Forms(reply.read().decode()).found
        for form in forms:
            since = self._seen.setdefault(form["promise"], time.monotonic())
            answer, after = self._decide(form["kind"], int(form["reference"].rpartition("-")[2]))
            if time.monotonic() - since >= after:
                self._press({**form, "answer": answer})

    def _decide(self, kind: str, number: int) -> tuple[str, float]:
        """The button to press, and how many seconds after the question was seen."""
        if kind == "approval":
            return "no" if number % self.REFUSED == 0 else "yes", self.THINKS
        late = number // 4 % self.LATE == 0
        return "yes", self._remind_after + self.PAYS if late else self.PAYS

    def _press(self, fields: dict[str, str]) -> None:
        data = urllib.parse.urlencode(fields).encode()
        try:
            # A form's content type is urllib's default; the answer leads back to the page.
            with urllib.request.urlopen(f"{self._url}/answers", data, timeout=15):
                pass
        except urllib.error.HTTPError as error:
            with error:
                # Somebody else was at the page and pressed first.
                if error.code != 409:
                    raise
