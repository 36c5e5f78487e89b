"""How the shop talks to the gateway, the carrier, the mailer and its front desk: JSON over HTTP, nothing else."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, cast

#: Seconds to wait for an answer. Longer than the services ever take, so that a time-out means trouble.
TIMEOUT = 15.0


class ServiceDown(Exception):
    """The service refused before it did anything: HTTP 503, or nobody listens. Trying again is safe."""


class ServiceRefused(Exception):
    """The service understood and said no (any other HTTP error). Trying again changes nothing."""


@dataclass(frozen=True)
class Receipt:
    """The gateway's word that it took the money."""

    charge_id: str
    amount_cents: int


@dataclass(frozen=True)
class Parcel:
    """A parcel that the carrier will pick up."""

    tracking: str
    reference: str


def _call(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return cast("dict[str, Any]", json.load(reply))
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read().decode(errors="replace")
        kind = ServiceDown if error.code == 503 else ServiceRefused
        raise kind(f"{url} answered {error.code}: {reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise ServiceDown(f"nobody listens at {url}") from None
        raise


class Gateway:
    """The payment gateway. It honours ``Idempotency-Key``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def charge(self, reference: str, amount_cents: int, *, idempotency_key: str) -> Receipt:
        """Take the money for an order; the same key never takes it twice."""
        body = {"reference": reference, "amount_cents": amount_cents}
        reply = _call(f"{self.url}/charges", body, {"Idempotency-Key": idempotency_key})
        return Receipt(charge_id=reply["id"], amount_cents=reply["amount_cents"])

    def refund(self, reference: str, receipt: Receipt, *, idempotency_key: str) -> str:
        """Give the money of a charge back and return the refund's id; the same key never does it twice."""
        body = {"reference": reference, "amount_cents": receipt.amount_cents, "charge_id": receipt.charge_id}
        reply = _call(f"{self.url}/refunds", body, {"Idempotency-Key": idempotency_key})
        return cast("str", reply["id"])


class Carrier:
    """The parcel service. Every booking is a new parcel, but it can be asked what it has."""

    def __init__(self, url: str) -> None:
        self.url = url

    def book(self, reference: str, recipient: str) -> Parcel:
        """Book a parcel; booking twice makes two."""
        reply = _call(f"{self.url}/parcels", {"reference": reference, "recipient": recipient})
        return Parcel(tracking=reply["id"], reference=reply["reference"])

    def parcels(self, reference: str) -> list[Parcel]:
        """The parcels that were booked under this reference."""
        reply = _call(f"{self.url}/parcels?{urllib.parse.urlencode({'reference': reference})}")
        return [Parcel(tracking=entry["id"], reference=entry["reference"]) for entry in reply["entries"]]


class Mailer:
    """The mail provider. It sends what it gets and remembers no keys."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, reference: str, to: str, tag: str, subject: str) -> str:
        """Send a mail and return its message id; ``tag`` says what it is about."""
        reply = _call(f"{self.url}/mails", {"reference": reference, "to": to, "tag": tag, "subject": subject})
        return cast("str", reply["id"])


class Desk:
    """The shop's front desk: a page of questions for people. To ask the same twice is to ask it once."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, kind: str, reference: str, text: str, promise_id: str, token: str) -> None:
        """Put a question on the page; its answer keeps the promise."""
        body = {"kind": kind, "reference": reference, "text": text, "promise": promise_id, "token": token}
        _call(f"{self.url}/questions", body)
