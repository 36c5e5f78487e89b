"""The shop's one task: fulfil an order.

It reads like any Celery task. What is special is the base class, and that every step says what it would mean to
run it again.
"""

from __future__ import annotations

import time

from celery_durable import (
    DID_NOT_HAPPEN,
    DurableTask,
    Happened,
    Intent,
    OnAmbiguous,
    StepHandle,
    current_step,
    guarded,
    step,
)
from celery_durable.effects import Verdict

from .app import app, config
from .clients import Carrier, Gateway, Mailer, Parcel, Receipt, ServiceDown
from .shop import Order, Shop

shop = Shop(config.shop_db)
gateway = Gateway(config.gateway_url)
carrier = Carrier(config.carrier_url)
mailer = Mailer(config.mailer_url)

#: Seconds that a request of a killed worker may still be on its way to the carrier.
CARRIER_SETTLES = 1.0

#: What the confirmation's step returns when nobody knows whether the mail went out.
UNCONFIRMED = "unconfirmed"


@step
def load_order(order_id: int) -> Order:
    """Idempotent: reading twice changes nothing."""
    return shop.order(order_id)


@step
def reserve_stock(order: Order) -> int:
    """Idempotent: the reservation is keyed by the order."""
    shop.reserve(order)
    return order.quantity


@step(effect=guarded(Intent.MONEY_MOVING, on_ambiguous=OnAmbiguous.RERUN))
def charge(order: Order) -> Receipt:
    """Moves money. After a crash it is asked for again under the same key, and the gateway deduplicates."""
    key = current_step().idempotency_key.hex()
    return gateway.charge(order.reference, order.total_cents, idempotency_key=key)


def find_parcel(_handle: StepHandle, order: Order) -> Verdict:
    """What became of a booking that a crash interrupted? The carrier has no keys, but it can be asked.

    A request which the dead worker had already sent may reach the carrier after we asked. So give it the time
    that it may take at most, and ask then: an answer that comes too early is a guess.
    """
    time.sleep(CARRIER_SETTLES)
    parcels = carrier.parcels(order.reference)
    return Happened(parcels[0]) if parcels else DID_NOT_HAPPEN


@step(effect=guarded(Intent.CUSTOM, on_ambiguous=find_parcel, definite=ServiceDown))
def book_parcel(order: Order) -> Parcel:
    """Every call is another parcel. ``ServiceDown`` is declared to mean that none was booked."""
    return carrier.book(order.reference, order.customer)


@step(effect=guarded(Intent.COST_BEARING, on_ambiguous=OnAmbiguous.SKIP, assumed=UNCONFIRMED))
def send_confirmation(order: Order, tracking: str) -> str:
    """A missing mail is better than two: when in doubt, it counts as sent."""
    return mailer.send(order.reference, order.email, f"Your {order.sku} is on its way: {tracking}")


@step
def write_invoice(order: Order, charge_id: str, tracking: str) -> str:
    """Idempotent: an order has one invoice, written as often as you like."""
    return shop.write_invoice(order, charge_id, tracking)


@app.task(
    base=DurableTask, bind=True, autoretry_for=(ServiceDown,), retry_backoff=True, retry_backoff_max=4, max_retries=50
)
def fulfil(self: DurableTask, order_id: int) -> str:
    """Fulfil one order and return the number of its invoice."""
    order = load_order(order_id)
    reserve_stock(order)
    receipt = charge(order)
    parcel = book_parcel(order)
    send_confirmation(order, parcel.tracking)
    return write_invoice(order, receipt.charge_id, parcel.tracking)
