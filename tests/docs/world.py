"""What the examples talk to, in memory: an order system, a payment gateway, a carrier, a mailer, a language model.

Imported anew for every page.
"""

from __future__ import annotations

from dataclasses import dataclass


class GatewayDown(Exception):
    """Refused before anything was done."""


class CardDeclined(Exception):
    """Nothing was charged."""


class Killed(BaseException):
    """Ends a body where it stands, as the death of its process does: no ``except Exception`` sees it."""


@dataclass(frozen=True)
class Order:
    id: int
    total: int
    email: str


@dataclass(frozen=True)
class Receipt:
    id: str


class Gateway:
    """Deduplicates on the key."""

    def __init__(self) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.requests = 0
        #: What the next requests raise, after the charge was made when it is a TimeoutError.
        self.trouble: list[BaseException] = []

    def charge(self, total: int, *, idempotency_key: str) -> Receipt:
        self.requests += 1
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, Exception) and not isinstance(trouble, TimeoutError):
            raise trouble
        receipt = self.receipts.setdefault(idempotency_key, Receipt(f"receipt-{len(self.receipts) + 1}"))
        if trouble is not None:
            raise trouble
        return receipt


class Carrier:
    """Books a parcel for every call; can be asked."""

    def __init__(self) -> None:
        self.parcels: list[tuple[int, str]] = []
        self.trouble: list[BaseException] = []

    def book(self, order_id: int) -> str:
        self.parcels.append((order_id, f"parcel-{len(self.parcels) + 1}"))
        if self.trouble:
            raise self.trouble.pop(0)
        return self.parcels[-1][1]

    def find(self, order_id: int) -> list[str]:
        return [parcel for order, parcel in self.parcels if order == order_id]


class Mailer:
    """Sends what it gets."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.trouble: list[BaseException] = []

    def send(self, to: str, text: str) -> None:
        self.sent.append((to, text))
        if self.trouble:
            raise self.trouble.pop(0)


gateway, carrier, mailer = Gateway(), Carrier(), Mailer()
orders = {number: Order(number, 100 * number, f"customer{number}@example.com") for number in range(1, 50)}


def send_mail(to: str, receipt_id: str) -> None:
    mailer.send(to, receipt_id)


def kill(task: object, *args: object, task_id: str) -> None:
    """Run a task whose trouble kills it."""
    try:
        task.apply(args, task_id=task_id)  # type: ignore[attr-defined]
    except Killed:
        return
    raise AssertionError("nothing killed it")
