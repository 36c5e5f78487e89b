"""What it means to run a step again, and what to do when nobody knows whether it ran."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from celery_durable.errors import AmbiguityPolicyRequired, ConfigurationError

__all__ = [
    "DID_NOT_HAPPEN",
    "UNKNOWN",
    "UNSET",
    "DidNotHappen",
    "Effect",
    "Guard",
    "Happened",
    "Intent",
    "OnAmbiguous",
    "Policy",
    "Reconcile",
    "Unknown",
    "Verdict",
    "guarded",
]

T = TypeVar("T")


class Effect(enum.Enum):
    """What it means to run a step a second time."""

    #: Running again changes nothing: a read, a pure function, a PUT. Replayed from the journal.
    IDEMPOTENT = "idempotent"
    #: Running again is tolerable: a log line, a metric, a chat message. Journaled in the same way.
    AT_LEAST_ONCE = "at_least_once"
    #: Running again does harm. An intent is committed before it starts, under a verified lease.
    EXACTLY_ONCE_GUARDED = "guarded"
    #: Writes to the journal's own database, in one transaction with its journal entry: done once, or not at all.
    TRANSACTIONAL = "transactional"


class Intent(enum.Enum):
    """Why a step is guarded; it decides whether a policy for the ambiguous window must be given."""

    #: Charges, refunds, transfers. Needs an explicit policy.
    MONEY_MOVING = "money_moving"
    #: Deletes or overwrites what cannot be restored. Needs an explicit policy.
    DESTRUCTIVE = "destructive"
    #: Grants, keys, passwords. Needs an explicit policy.
    SECURITY_RELEVANT = "security_relevant"
    #: Costs something, but losing one is cheaper than doubling one: a mail, a paid call. Defaults to SKIP.
    COST_BEARING = "cost_bearing"
    #: Anything else. Needs an explicit policy.
    CUSTOM = "custom"


class OnAmbiguous(enum.Enum):
    """What to do with an intent that has no result. Alternatively, a callable asks the remote side."""

    #: Assume the effect happened; the step's value is the ``assumed`` one.
    SKIP = "skip"
    #: Call the operation again with the same idempotency key; the remote side deduplicates.
    RERUN = "rerun"
    #: Raise :class:`~celery_durable.errors.AmbiguousEffect`; if it escapes, park for an operator.
    FAIL = "fail"


@dataclass(frozen=True)
class Happened(Generic[T]):
    """Verdict of a reconcile callable: the effect took place, and this is its result."""

    #: The step's value, as if the operation had returned it.
    value: T


class DidNotHappen(enum.Enum):
    """Type of :data:`DID_NOT_HAPPEN`."""

    DID_NOT_HAPPEN = "did_not_happen"


class Unknown(enum.Enum):
    """Type of :data:`UNKNOWN`."""

    UNKNOWN = "unknown"


class _Unset(enum.Enum):
    UNSET = "unset"


#: Verdict of a reconcile callable: the effect did not take place; the operation is run.
DID_NOT_HAPPEN: Final = DidNotHappen.DID_NOT_HAPPEN
#: Verdict of a reconcile callable: the remote side does not know either; handled as ``FAIL``.
UNKNOWN: Final = Unknown.UNKNOWN
#: "Not given", where ``None`` is a value.
UNSET: Final = _Unset.UNSET

#: What a reconcile callable returns.
Verdict = Happened[Any] | DidNotHappen | Unknown
#: ``reconcile(handle, *args, **kwargs)``: asks the remote side about an interrupted operation.
Reconcile = Callable[..., Any]
Policy = OnAmbiguous | Reconcile

_DEFAULT_POLICY: Final = {Intent.COST_BEARING: OnAmbiguous.SKIP}


@dataclass(frozen=True)
class Guard:
    """How a guarded step behaves. Built by :func:`guarded`, which checks it.

    :raises AmbiguityPolicyRequired: when the intent needs an explicit ``on_ambiguous``.
    :raises ConfigurationError: when the values contradict each other.
    """

    #: Why the step is guarded.
    intent: Intent
    #: What to do with an intent without a result; ``None``: the intent's default.
    on_ambiguous: Policy | None = None
    #: The step's value when SKIP assumes that the effect happened.
    assumed: Any = field(default=UNSET)
    #: Exceptions that are known to mean "nothing happened" (``CardDeclined``), under FAIL and reconcile.
    definite: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.intent, Intent):
            raise ConfigurationError(
                f"guarded() needs a member of Intent as its first argument, not {self.intent!r}; "
                f"choose one of {', '.join(f'Intent.{i.name}' for i in Intent)}."
            )
        if self.on_ambiguous is None:
            default = _DEFAULT_POLICY.get(self.intent)
            if default is None:
                raise AmbiguityPolicyRequired(
                    f"a guarded step with Intent.{self.intent.name} needs on_ambiguous=: after a crash between "
                    "intent and result nobody knows whether the effect happened. Choose OnAmbiguous.RERUN (the "
                    "remote side deduplicates on the idempotency key), OnAmbiguous.FAIL (an operator decides), "
                    "OnAmbiguous.SKIP (assume it happened), or give a callable that asks the remote side."
                )
            object.__setattr__(self, "on_ambiguous", default)
        elif not isinstance(self.on_ambiguous, OnAmbiguous) and not callable(self.on_ambiguous):
            raise ConfigurationError(
                f"on_ambiguous= takes a member of OnAmbiguous or a callable, not {self.on_ambiguous!r}."
            )
        if self.assumed is not UNSET and self.on_ambiguous is not OnAmbiguous.SKIP:
            raise ConfigurationError(
                "assumed= is the value of a skipped step and has no meaning under another policy than "
                "OnAmbiguous.SKIP; remove one of the two."
            )
        given: Any = self.definite
        definite = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(e, type) and issubclass(e, BaseException) for e in definite):
            raise ConfigurationError(f"definite= takes exception classes, not {given!r}.")
        object.__setattr__(self, "definite", definite)

    @property
    def policy(self) -> Policy:
        """The policy in force, with the intent's default filled in."""
        assert self.on_ambiguous is not None
        return self.on_ambiguous


def guarded(
    intent: Intent,
    *,
    on_ambiguous: Policy | None = None,
    assumed: Any = UNSET,
    definite: tuple[type[BaseException], ...] | type[BaseException] = (),
) -> Guard:
    """Mark a step as one that must not run twice: ``@step(effect=guarded(Intent.MONEY_MOVING, ...))``.

    :param intent: why it is guarded.
    :param on_ambiguous: a member of :class:`OnAmbiguous`, or a callable ``reconcile(handle, *args, **kwargs)``
        that returns :class:`Happened`, :data:`DID_NOT_HAPPEN` or :data:`UNKNOWN`; what it raises counts as
        ``UNKNOWN``.
    :param assumed: value of the step when ``SKIP`` assumes that the effect happened.
    :param definite: exceptions of the operation that mean that nothing happened. Under ``FAIL`` and reconcile
        any other exception leaves the intent open.
    :raises AmbiguityPolicyRequired: when ``on_ambiguous`` is missing, for every intent except ``COST_BEARING``.
    :raises ConfigurationError: for values that contradict each other.
    """
    return Guard(intent, on_ambiguous, assumed, definite if isinstance(definite, tuple) else (definite,))
