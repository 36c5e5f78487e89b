"""Checks of the journal's contents: executions that wait in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable.codec import Codec
from celery_durable.execution.chords import chord_expiry
from celery_durable.messaging import envelope as envelopes
from celery_durable.retention.rules import Rules
from celery_durable.runtime import envelope_codec_of
from celery_durable.store.latest import count, latest
from celery_durable.store.records import FINAL_STATES, PARKED_STATES, PayloadKind, PromiseState, State, StoredPayload
from celery_durable.store.rows import LONGEST_SPACING
from celery_durable.store.tables import executions, now_ms, now_once, outbox, payloads, promises, upkeep

from .checks import Patient, Remark, check, error, fine, warning

if TYPE_CHECKING:
    from celery import Celery


__all__: list[str] = []

_x = executions.c

#: How late recovery may be before it is reported, in seconds and in rounds.
_LATE_SECONDS, _LATE_ROUNDS = 60.0, 10
#: Sent so often without having started.
_OFTEN = 5
#: From this number on, ended executions are many.
_MANY = 100_000
#: The most that are counted, and the most that are shown.
_MOST = 1000
_SHOWN = 3
#: The most due executions, and the most sleepers, that are looked at.
_LOOKED_AT = 10_000
_SLEEPERS = 200


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _count(number: int) -> str:
    return f"{number}" if number < _MOST else f"{_MOST} or more"


def _rows(patient: Patient, query: sa.Select[Any]) -> list[Any]:
    ours = query.where(_x.namespace == patient.settings.namespace)
    return list(patient.database.read(lambda c: c.execute(ours).all()))


@check("CD941", "parked executions")
def parked(patient: Patient) -> Iterator[Remark]:
    """They wait for a person."""
    states, namespace = tuple(PARKED_STATES), patient.settings.namespace
    number = patient.database.read(lambda c: count(c, namespace, states, _MOST))
    if number:
        found = patient.database.read(lambda c: latest(c, namespace, states=states, limit=_SHOWN + 1))
        yield warning(
            f"{_count(number)} execution(s) wait for an operator: {_listed([row.id for row in found])}",
            "celery durable show ID says why; then resolve, resume or cancel it.",
        )


@check("CD942", "recovery")
def overdue(patient: Patient) -> Iterator[Remark]:
    """Nobody sends what is due."""
    late = max(_LATE_SECONDS, _LATE_ROUNDS * patient.settings.recovery_interval)
    query = (
        sa.select(_x.id, (now_once() - _x.wake_at).label("late"))
        .where(_x.wake_at < now_once() - int(late * 1000))
        .order_by(_x.wake_at)
        .limit(_MOST)
    )
    found = _rows(patient, query)
    if found:
        yield error(
            f"{_count(len(found))} execution(s) are overdue, the first by {found[0].late / 1000:.0f} s, and nothing "
            f"sends them: {_listed([row.id for row in found])}",
            f"No recovery service of namespace {patient.settings.namespace!r} runs, or none reaches the broker. Start "
            "a worker, or celery durable service, and look at its log.",
        )
    unsent = sa.select(outbox.c.id).where(
        outbox.c.namespace == patient.settings.namespace, outbox.c.wake_at < now_once() - int(late * 1000)
    )
    messages = patient.database.read(lambda c: c.execute(unsent.order_by(outbox.c.wake_at).limit(_MOST)).all())
    if messages:
        yield error(
            f"{_count(len(messages))} message(s) of the outbox are overdue: {_listed([row.id for row in messages])}",
            "As above: a worker, or celery durable service, sends them.",
        )


@check("CD943", "sent, but not started")
def unstarted(patient: Patient) -> Iterator[Remark]:
    """Messages that no worker takes."""
    # What has been sent is looked at again within the longest pause. Of these some are looked at, the first ones first.
    soon = (
        sa.select(_x.id, _x.task, _x.sends, _x.state)
        .where(_x.namespace == patient.settings.namespace, _x.wake_at <= now_once() + LONGEST_SPACING)
        .order_by(_x.wake_at)
        .limit(_LOOKED_AT)
        .subquery()
    )
    waiting = (State.PENDING.value, State.SUSPENDED.value)
    query = sa.select(soon.c.id, soon.c.task).where(soon.c.sends >= _OFTEN, soon.c.state.in_(waiting)).limit(_MOST)
    found = patient.database.read(lambda c: c.execute(query).all())
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
    ended, namespace = tuple(FINAL_STATES), patient.settings.namespace
    if patient.database.read(lambda c: count(c, namespace, ended, _MANY + 1)) > _MANY:
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
            f"durable_retention is set, but no service prunes; the last one was seen {silent / 1000:.0f} s ago.",
            "Start workers, or celery durable service, with these settings.",
        )


@check("CD946", "chords that wait")
def chords(patient: Patient) -> Iterator[Remark]:
    """A member sleeps for longer than the result backend remembers its chord."""
    expiry = chord_expiry(patient.app)
    if expiry is None:
        return
    asleep = _x.namespace == patient.settings.namespace, _x.state == State.SUSPENDED.value, _x.pruned_at.is_(None)
    # Who sleeps until the latest time; and who began first, for who waits for a decision may wait until now, at least.
    last = sa.select(_x.pk).where(asleep[0], _x.wake_at.is_not(None)).order_by(_x.wake_at.desc()).limit(_SLEEPERS)
    first = sa.select(_x.pk).where(*asleep).order_by(_x.pruned_at, _x.pk).limit(_SLEEPERS)
    some = patient.database.read(lambda c: {*c.execute(last).scalars(), *c.execute(first).scalars()})
    query = (
        sa.select(_x.id, payloads.c.codec, payloads.c.data)
        .join(payloads, sa.and_(payloads.c.pk == _x.pk, payloads.c.kind == int(PayloadKind.ENVELOPE)))
        .where(
            _x.pk.in_(some),
            _x.state == State.SUSPENDED.value,
            sa.func.coalesce(_x.wake_at, now_ms()) - _x.created_at > int(expiry * 1000),
        )
    )
    codec = envelope_codec_of(patient.app, patient.settings)
    found = patient.database.read(lambda c: c.execute(query).all())
    late = [row.id for row in found if _in_chord(patient.app, row, codec)]
    if late:
        yield error(
            f"member(s) of chords wait for longer than the result backend remembers a chord ({expiry:g} s): "
            f"{_listed(late)}. The bodies of these chords will not run.",
            "Raise result_expires (result_chord_expires since Celery 5.7) before such a chord is started; and wait "
            "before or after a chord, not in a member of it.",
        )


def _in_chord(app: Celery, row: Any, codec: Codec) -> bool:
    try:
        message = envelopes.unpack(StoredPayload(row.codec, bytes(row.data)), codec)
        _, _, embed = envelopes.accepted_body(app, message)
        return bool((embed or {}).get("chord"))
    # Another version's, or a serializer that is not read here: nothing is known of it.
    except Exception:
        return False


@check("CD947", "tokens of promises")
def tokens(patient: Patient) -> Iterator[Remark]:
    """Who reads the database could keep a promise."""
    if patient.settings.secret is not None:
        yield fine("derived from durable_secret; the journal does not hold them")
        return
    some = patient.database.read(
        lambda c: latest(c, patient.settings.namespace, states=[State.SUSPENDED], limit=_SLEEPERS)
    )
    names = {row.pk: row.id for row in some}
    query = (
        sa.select(promises.c.pk)
        .where(
            promises.c.pk.in_(names), promises.c.state == int(PromiseState.PENDING), promises.c.token_hash.is_not(None)
        )
        .limit(_MOST)
    )
    found = patient.database.read(lambda c: c.execute(query).scalars().all())
    if found:
        yield warning(
            f"{_count(len(found))} awaited promise(s) may have their tokens in the journal, because durable_secret is "
            f"not set: whoever reads the database can settle them ({_listed(sorted({names[pk] for pk in found}))}).",
            "Set durable_secret in all processes; new promises then have tokens that are not in the database, and new "
            "child tasks have ids that nobody can guess.",
        )
