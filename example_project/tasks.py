"""The shop's two tasks: fulfil an order, and send one parcel of it.

They read like any Celery task. What is special is the base class, that every step says what it would mean to run it
again and how it is undone, and that they
wait, for people and for each other, without a worker that waits.
"""

from __future__ import annotations

import time
from typing import Any

from celery_durable import (
    DID_NOT_HAPPEN,
    DurableContext,
    DurableTask,
    Happened,
    Intent,
    OnAmbiguous,
    PromiseRejected,
    Retry,
    StepHandle,
    current_step,
    guarded,
    step,
)
from celery_durable.effects import Verdict

from .app import app, config
from .clients import Carrier, Desk, Gateway, Mailer, Parcel, Receipt, ServiceDown
from .shop import Order, OutOfStock, Shop

shop = Shop(config.shop_db)
gateway = Gateway(config.gateway_url)
carrier = Carrier(config.carrier_url)
mailer = Mailer(config.mailer_url)
desk = Desk(config.desk_url)

#: Seconds that a request of a killed worker may still be on its way to the carrier.
CARRIER_SETTLES = 1.0

#: What a mail's step returns when nobody knows whether the mail went out.
UNCONFIRMED = "unconfirmed"

#: A missing mail is better than two: when in doubt, it counts as sent.
MAIL = guarded(Intent.COST_BEARING, on_ambiguous=OnAmbiguous.SKIP, assumed=UNCONFIRMED)

#: For what has to succeed in the end, because it undoes something.
STUBBORN = Retry(max_attempts=20, backoff=0.2, max_backoff=2.0, on=ServiceDown)


# -- the steps ------------------------------------------------------------------------------------------------


@step
def load_order(order_id: int) -> Order:
    """Idempotent: reading twice changes nothing."""
    return shop.order(order_id)


@step
def ask(order: Order, kind: str, text: str, promise_id: str, token: str) -> None:
    """Idempotent: the front desk knows a question by its promise."""
    desk.ask(kind, order.reference, text, promise_id, token)


@step
def release_stock(_quantity: int, order: Order) -> None:
    """Undoes ``reserve_stock``. Idempotent: what is not reserved is not released."""
    shop.release(order)


@step(compensate=release_stock)
def reserve_stock(order: Order) -> int:
    """Idempotent: the reservation is keyed by the order."""
    shop.reserve(order)
    return order.quantity


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN), retry=STUBBORN)
def refund(receipt: Receipt, order: Order) -> str:
    """Undoes ``charge``. Moves money as well, and is asked for again under the same key."""
    key = current_step().idempotency_key.hex()
    return gateway.refund(order.reference, receipt, idempotency_key=key)


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN), compensate=refund)
def charge(order: Order) -> Receipt:
    """Moves money. After a crash it is asked for again under the same key, and the gateway deduplicates."""
    key = current_step().idempotency_key.hex()
    return gateway.charge(order.reference, order.total_cents, idempotency_key=key)


@step
def pick_goods(order: Order) -> None:
    """Where it turns out that an order cannot be shipped; what was done for it is undone then."""
    shop.pick(order)


def find_parcel(_handle: StepHandle, order: Order, item: int) -> Verdict:
    """What became of a booking that a crash interrupted? The carrier has no keys, but it can be asked.

    A request which the dead worker had already sent may reach the carrier after we asked. So give it the time
    that it may take at most, and ask then: an answer that comes too early is a guess.
    """
    time.sleep(CARRIER_SETTLES)
    parcels = carrier.parcels(order.parcel(item))
    return Happened(parcels[0]) if parcels else DID_NOT_HAPPEN


@step(effect=guarded(Intent.CUSTOM, on_ambiguous=find_parcel, definite=ServiceDown))
def book_parcel(order: Order, item: int) -> Parcel:
    """Every call is another parcel. ``ServiceDown`` is declared to mean that none was booked."""
    return carrier.book(order.parcel(item), order.customer)


@step(effect=MAIL)
def send_refusal(order: Order, why: str) -> str:
    """Tell a customer that the order was refused."""
    return mailer.send(order.reference, order.email, "refusal", f"We cannot take your order: {why}")


@step(effect=MAIL)
def send_reminder(order: Order) -> str:
    """Remind a customer of the payment."""
    return mailer.send(order.reference, order.email, "reminder", f"Please pay for your {order.sku}")


@step(effect=MAIL, retry=STUBBORN)
def send_apology(order: Order) -> str:
    """Tell a customer that the order fell through."""
    return mailer.send(order.reference, order.email, "apology", f"Sorry, we cannot send your {order.sku}")


@step(effect=MAIL)
def send_confirmation(order: Order, tracking: str) -> str:
    """Tell a customer that the goods are on their way."""
    return mailer.send(order.reference, order.email, "confirmation", f"Your {order.sku} is on its way: {tracking}")


@step
def write_invoice(order: Order, charge_id: str, tracking: str) -> str:
    """Idempotent: an order has one invoice, written as often as you like."""
    return shop.write_invoice(order, charge_id, tracking)


# -- the tasks ------------------------------------------------------------------------------------------------

#: Plain Celery: what is tried again, how often, and how soon.
PATIENT: dict[str, Any] = {
    "autoretry_for": (ServiceDown,),
    "retry_backoff": True,
    "retry_backoff_max": 4,
    "max_retries": 50,
}


# That goods cannot be found happens; the log needs no traceback for it.
@app.task(base=DurableTask, bind=True, throws=(OutOfStock,), **PATIENT)
def fulfil(self: DurableTask, order_id: int) -> str:
    """Fulfil one order.

    :returns: the number of its invoice, or ``refused``.
    :raises OutOfStock: it could not be shipped; stock and money went back.
    """
    order = load_order(order_id)
    if order.needs_approval:
        try:
            wait_for_approval(self.durable, order)
        except PromiseRejected as refusal:
            send_refusal(order, str(refusal.reason))
            return "refused"
    # From here on, what was done is undone if the task fails: first the charge, then the reservation, then this.
    self.durable.on_failure(send_apology, order)
    reserve_stock(order)
    if order.pays_later:
        wait_for_payment(self.durable, order)
    receipt = charge(order)
    pick_goods(order)
    # Teapots travel alone: a parcel, and a task of its own, for each item. They are done by all workers at once.
    parcels = self.durable.gather(*(send_parcel.s(order.id, item) for item in range(1, order.quantity + 1)))
    tracking = ", ".join(parcels)
    send_confirmation(order, tracking)
    return write_invoice(order, receipt.charge_id, tracking)


@app.task(base=DurableTask, **PATIENT)
def send_parcel(order_id: int, item: int) -> str:
    """Send one item of an order and return the number of its parcel."""
    order = load_order(order_id)
    return book_parcel(order, item).tracking


def wait_for_approval(durable: DurableContext, order: Order) -> None:
    """Until somebody presses a button, be it next week. No worker waits meanwhile.

    :raises PromiseRejected: the button said no.
    """
    approval = durable.promise("approval")
    text = f"{order.reference}: {order.quantity} × {order.sku} for {order.customer}, {order.total_cents / 100:.2f} EUR"
    ask(order, "approval", text, approval.id, approval.token)
    durable.wait(approval)


def wait_for_payment(durable: DurableContext, order: Order) -> None:
    """Until the customer has pressed "pay"; remind them once."""
    # In this order: the commit that makes the promise takes the timer along, before anybody can be asked.
    late, paid = durable.timer(config.remind_after), durable.promise("payment")
    text = f"{order.reference}: {order.customer} has to pay {order.total_cents / 100:.2f} EUR"
    ask(order, "payment", text, paid.id, paid.token)
    if durable.select(paid=paid, late=late).key == "late":
        send_reminder(order)
        durable.wait(paid)
