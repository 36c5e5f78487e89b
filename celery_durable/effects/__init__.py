"""What users declare of a step: what it means to run it again, and how it runs in a transaction."""

from __future__ import annotations

from .effect import (
    DID_NOT_HAPPEN,
    UNKNOWN,
    UNSET,
    DidNotHappen,
    Effect,
    Guard,
    Happened,
    Intent,
    OnAmbiguous,
    Policy,
    Reconcile,
    Unknown,
    Verdict,
    guarded,
)
from .transactional import (
    TRIES,
    AnyTransactional,
    DjangoTransactional,
    Giver,
    Isolation,
    Transactional,
    check_transaction,
    is_asynchronous,
    is_giver,
    transactional,
)

__all__ = [
    "DID_NOT_HAPPEN",
    "TRIES",
    "UNKNOWN",
    "UNSET",
    "AnyTransactional",
    "DidNotHappen",
    "DjangoTransactional",
    "Effect",
    "Giver",
    "Guard",
    "Happened",
    "Intent",
    "Isolation",
    "OnAmbiguous",
    "Policy",
    "Reconcile",
    "Transactional",
    "Unknown",
    "Verdict",
    "check_transaction",
    "guarded",
    "is_asynchronous",
    "is_giver",
    "transactional",
]
