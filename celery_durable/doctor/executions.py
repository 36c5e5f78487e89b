"""Checks of what is in the journal: executions that wait for somebody who does not come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from .. import envelope as envelopes
from ..codec import Codec
from ..expiry import chord_expiry
from ..retention import Rules
from ..store.records import FINAL_STATES, PARKED_STATES, PayloadKind, PromiseState, State, StoredPayload
from ..store.tables import executions, now_ms, outbox, payloads, promises, upkeep
from .checks import Patient, Remark, check, error, fine, warning

__all__: list[str] = []

_x = executions.c

#: How late recovery may be before somebody is told, in seconds and in rounds.
_LATE_SECONDS, _LATE_ROUNDS = 60.0, 10
#: Sent so often without having started.
_OFTEN = 5
#: So many executions that have ended are many.
_MANY = 100_000
#: So many are counted; and so many are shown.
_MOST = 1000
_SHOWN = 3
#: So many sleepers are looked at.
_SLEEPERS = 200


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _count(rows: list[Any]) -> str:
    return f"{len(rows)}" if len(rows) < _MOST else f"{_MOST} or more"


def _rows(patient: Patient, query: sa.Select[Any]) -> list[Any]:
    ours = query.where(_x.namespace == patient.settings.namespace)
    return list(patient.unhurried.read(lambda c: c.execute(ours).all()))


@check("CD941", "parked executions")
def parked(patient: Patient) -> Iterator[Remark]:
    """They wait for a person."""
    states = [state.value for state in PARKED_STATES]
    found = _rows(patient, sa.select(_x.id).where(_x.state.in_(states)).order_by(_x.pk.desc()).limit(_MOST))
    if found:
        count = _count(found)
        yield warning(
            f"{count} execution(s) wait for an operator: {_listed([row.id for row in found])}",
            "celery durable show ID says why; then resolve, resume or cancel it.",
        )


@check("CD942", "recovery")
def overdue(patient: Patient) -> Iterator[Remark]:
    """Nobody sends what is due."""
    late = max(_LATE_SECONDS, _LATE_ROUNDS * patient.settings.recovery_interval)
    query = (
        sa.select(_x.id, (now_ms() - _x.wake_at).label("late"))
        .where(_x.wake_at < now_ms() - int(late * 1000))
        .order_by(_x.wake_at)
        .limit(_MOST)
    )
    found = _rows(patient, query)
    if found:
        count = _count(found)
        yield error(
            f"{count} execution(s) are overdue, the first by {found[0].late / 1000:.0f} s, and nobody sends them: "
            f"{_listed([row.id for row in found])}",
            f"No recovery service of namespace {patient.settings.namespace!r} runs, or none reaches the broker. Start "
            "a worker, or celery durable service, and look into its log.",
        )
    unsent = sa.select(outbox.c.id).where(
        outbox.c.namespace == patient.settings.namespace, outbox.c.wake_at < now_ms() - int(late * 1000)
    )
    messages = patient.unhurried.read(lambda c: c.execute(unsent.limit(_MOST)).all())
    if messages:
        yield error(
            f"{_count(list(messages))} message(s) of the outbox are overdue: {_listed([row.id for row in messages])}",
            "As above: a worker, or celery durable service, sends them.",
        )


@check("CD943", "sent, but not started")
def unstarted(patient: Patient) -> Iterator[Remark]:
    """Messages that no worker takes."""
    waiting = (State.PENDING.value, State.SUSPENDED.value)
    query = (
        sa.select(_x.id, _x.task)
        .where(_x.wake_at.is_not(None), _x.sends >= _OFTEN, _x.state.in_(waiting))
        .order_by(_x.wake_at)
        .limit(_MOST)
    )
    found = _rows(patient, query)
    if found:
        tasks = sorted({row.task for row in found})
        yield warning(
            f"{len(found)} execution(s) were sent {_OFTEN} times or more and have not started: "
            f"{_listed([row.id for row in found])} (task {_listed(tasks)})",
            "Does a worker consume their queue, does it know the task, and is the queue very long?",
        )


@check("CD944", "retention")
def retention(patient: Patient) -> Iterator[Remark]:
    """A journal that only grows."""
    rules = Rules.of(patient.settings)
    if rules.active:
        yield fine("on")
        return
    ended = [state.value for state in FINAL_STATES]
    query = sa.select(_x.pk).where(_x.state.in_(ended), _x.pruned_at.is_(None)).limit(1).offset(_MANY)
    if _rows(patient, query):
        yield warning(
            f"more than {_MANY} executions have ended, and durable_retention is not set: the journal only grows.",
            "Set durable_retention, such as {'completed': timedelta(days=7)}; or run celery durable prune.",
        )
    else:
        yield fine("off: what has ended is kept for ever")


@check("CD945", "pruning")
def pruning(patient: Patient) -> Iterator[Remark]:
    """Nobody follows the rules."""
    if not Rules.of(patient.settings).active:
        return
    query = sa.select((now_ms() - upkeep.c.held_until).label("silent")).where(
        upkeep.c.namespace == patient.settings.namespace
    )
    silent = patient.database.read(lambda c: c.execute(query).scalar())
    late = max(_LATE_SECONDS, 10 * _LATE_ROUNDS * patient.settings.recovery_interval) * 1000
    if silent is None:
        yield warning(
            "durable_retention is set, but no service has ever pruned this namespace.",
            "Start workers, or celery durable service, with these settings.",
        )
    elif silent > late:
        yield warning(
            f"durable_retention is set, but no service prunes; the last one fell silent {silent / 1000:.0f} s ago.",
            "Start workers, or celery durable service, with these settings.",
        )


@check("CD946", "chords that wait")
def chords(patient: Patient) -> Iterator[Remark]:
    """A member sleeps for longer than the result backend remembers its chord."""
    expiry = chord_expiry(patient.app)
    if expiry is None:
        return
    query = (
        sa.select(_x.id, payloads.c.codec, payloads.c.data)
        .join(payloads, sa.and_(payloads.c.pk == _x.pk, payloads.c.kind == int(PayloadKind.ENVELOPE)))
        .where(
            _x.state == State.SUSPENDED.value,
            # Who waits for a decision may wait until now, at least.
            sa.func.coalesce(_x.wake_at, now_ms()) - _x.created_at > int(expiry * 1000),
        )
        .limit(_SLEEPERS)
    )
    codec = Codec(patient.settings.serializer, 1 << 62)
    late = [row.id for row in _rows(patient, query) if _in_chord(row, codec)]
    if late:
        yield error(
            f"member(s) of chords wait for longer than the result backend remembers a chord ({expiry:g} s): "
            f"{_listed(late)}. The bodies of these chords will not run.",
            "Raise result_expires (result_chord_expires since Celery 5.7) before such a chord is started; and wait "
            "before or after a chord, not in a member of it.",
        )


def _in_chord(row: Any, codec: Codec) -> bool:
    try:
        message = envelopes.unpack(StoredPayload(row.codec, bytes(row.data)), codec)
        _, _, embed = envelopes.body_of(message)
    # Another version's, or a serializer that is not read here: nothing is known of it.
    except Exception:
        return False
    return bool((embed or {}).get("chord"))


@check("CD947", "tokens of promises")
def tokens(patient: Patient) -> Iterator[Remark]:
    """Who reads the database could keep a promise."""
    if patient.settings.secret is not None:
        yield fine("derived from durable_secret; the journal does not hold them")
        return
    query = (
        sa.select(_x.id)
        .join(promises, promises.c.pk == _x.pk)
        .where(promises.c.state == int(PromiseState.PENDING), promises.c.token_hash.is_not(None))
        .limit(_MOST)
    )
    found = _rows(patient, query)
    if found:
        yield warning(
            f"{_count(found)} promise(s) are waited for whose tokens may lie in the journal, for durable_secret is not "
            f"set: whoever reads the database can settle them ({_listed(sorted({row.id for row in found}))}).",
            "Set durable_secret in all processes; new promises then have tokens that the database does not know.",
        )
