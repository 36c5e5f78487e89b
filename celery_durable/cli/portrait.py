"""One execution as data: the store's rows, read and decoded for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from celery_durable.store.records import PARKED_STATES, Execution, PayloadKind, State, StoredPayload
from celery_durable.store.rows import reason_text

from .base import Desk
from .listing import summary, waits_for
from .promising import awaited_by
from .rendering import iso
from .values import plain, type_name

if TYPE_CHECKING:
    from celery_durable.journal.timeline import Event, RecordedStep, RecordedWait, Timeline
    from celery_durable.store.promises.rows import PromiseRow

__all__ = ["Portrait", "draw"]


@dataclass
class Portrait:
    """Everything that is known of one execution."""

    execution: Execution
    #: The generation whose steps are shown.
    generation: int
    #: All generations, and why each was aborted; None: it was not.
    generations: dict[int, str | None]
    timeline: Timeline
    #: Why it was parked, cancelled or failed from outside.
    reason: str | None
    #: ``{"kind": "value" or "error", ...}``.
    outcome: dict[str, Any] | None
    #: With ``--reveal``: ``{"args": ..., "kwargs": ...}``.
    arguments: dict[str, Any] | None
    #: What it waits for that somebody is to bring.
    promises: list[PromiseRow]
    reveal: bool
    desk: Desk

    @property
    def doubts(self) -> list[RecordedStep]:
        """The steps that wait for an operator."""
        if self.execution.state is not State.AMBIGUOUS or self.generation != self.execution.generation:
            return []
        return [s for s in self.timeline.steps if s.outcome in ("in doubt", "conflict")]

    def as_json(self) -> dict[str, Any]:
        row = self.execution
        timeline = self.timeline
        return {
            **{k: v for k, v in summary(row).items() if k not in ("steps", "generation")},
            "waits_for": waits_for(row, self.promises),
            "namespace": row.namespace,
            "epoch": row.epoch,
            "owner": row.owner if row.state is State.RUNNING else None,
            "lease_until": iso(row.lease_until) if row.state is State.RUNNING else None,
            "reason": self.reason,
            "outcome": self.outcome,
            "arguments": self.arguments,
            "generation": self.generation,
            "generations": [{"generation": n, "aborted": why} for n, why in self.generations.items()],
            "steps": [self.step_json(step) for step in timeline.steps],
            "waits": [self.wait_json(wait) for wait in timeline.waits],
            "scopes": [{"position": s.position, "branches": s.branches, "ended": s.ended} for s in timeline.scopes],
            "patches": timeline.patches,
            "decisions": [self._decision_json(name, event) for name, event in timeline.decisions],
        }

    def step_json(self, step: RecordedStep) -> dict[str, Any]:
        found = {
            "position": step.position,
            "name": step.name,
            "effect": step.effect,
            "outcome": step.outcome.value,
            "key": None if step.key is None else step.key.hex(),
            "attempts": step.attempts,
            "duration_ms": _ms(step.duration_us),
            "at": iso(step.at),
            "doubt": step.doubt,
            "history": [self._event_json(event) for event in step.events],
        }
        if self.reveal:
            found |= self.content(step.outcome, step.payload)
        return found

    def wait_json(self, wait: RecordedWait) -> dict[str, Any]:
        found = {
            "position": wait.position,
            "kind": wait.kind,
            "name": wait.name,
            "outcome": wait.outcome,
            "at": iso(wait.at),
            "until": iso(wait.until),
        }
        if self.reveal and wait.payload is not None:
            found["error" if wait.outcome == "failed" else "value"] = self.read(wait.payload)
        return found

    def _event_json(self, event: Event) -> dict[str, Any]:
        found: dict[str, Any] = {
            "entry": event.kind,
            "attempt": event.attempt,
            "at": iso(event.at),
            "duration_ms": _ms(event.duration_us),
            "text": event.text or None,
        }
        if self.reveal:
            found["content"] = plain(event.details) if event.kind == "audit" else self.read(event.payload)
        return found

    @staticmethod
    def _decision_json(name: str, event: Event) -> dict[str, Any]:
        said = event.details
        known = {key: said.get(key) for key in ("promise", "decision", "by", "note")}
        return {"name": name, "at": iso(event.at), **known}

    def content(self, outcome: str, payload: StoredPayload | None) -> dict[str, Any]:
        """The value or the error of a step."""
        if outcome in ("done", "skipped"):
            return {"value": self.read(payload)}
        return {"error": self.read(payload)} if outcome in ("failed", "lost", "retrying") else {}

    def read(self, payload: StoredPayload | None) -> Any:
        """A payload as plain JSON; where it cannot be decoded, why."""
        if payload is None:
            return None
        from celery_durable.errors import DurableError

        try:
            return plain(self.desk.runtime.codec.decode_either(payload.codec, payload.data, "this value"))
        # Of ours; or what a class raises while one of its instances is shown.
        except (DurableError, Exception) as error:
            return {"unreadable": str(error)}


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def draw(desk: Desk, execution_id: str, generation: int | None, reveal: bool) -> Portrait:
    """Read an execution.

    :raises UnknownExecution: when there is none of this id.
    :raises click.UsageError: when it has no such generation.
    """
    from celery_durable.journal import timeline

    operations, codec = desk.operations, desk.runtime.codec
    row = operations.get(execution_id)
    numbers = sorted({*operations.generations(row.pk), row.generation})
    shown = row.generation if generation is None else generation
    if shown not in numbers:
        raise click.UsageError(f"execution {execution_id} has no generation {shown}; it has {_listed(numbers)}")
    found = {
        number: timeline.read(
            operations.entries(row.pk, number, values=reveal and number == shown),
            codec,
            row.state if number == row.generation else None,
        )
        for number in {shown, row.generation}
    }
    portrait = Portrait(
        execution=row,
        generation=shown,
        generations=dict.fromkeys(numbers),
        timeline=found[shown],
        reason=_reason(desk, row, found[row.generation], reveal),
        outcome=_outcome(desk, row, reveal),
        arguments=_arguments(desk, row) if reveal else None,
        promises=awaited_by(desk, [row]).get(row.pk, []),
        reveal=reveal,
        desk=desk,
    )
    for number, payload in operations.aborts(row.pk).items():
        portrait.generations[number] = str(portrait.read(payload))
    return portrait


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _reason(desk: Desk, row: Execution, now: Timeline, reveal: bool) -> str | None:
    if row.state not in (*PARKED_STATES, State.CANCELLED, State.FAILED):
        return None
    stored = desk.operations.payload(row.pk, PayloadKind.REASON)
    text = None if stored is None else reason_text(stored, reveal=reveal)
    if row.state is not State.AMBIGUOUS or reveal:
        return text
    # In short: the stored text says how to settle it, which the picture does too.
    doubts = [s for s in now.steps if s.doubt is not None and s.outcome != "unreadable"]
    return "; ".join(f"step {s.name!r} (position {s.position}): {s.doubt}" for s in doubts) or None


def _outcome(desk: Desk, row: Execution, reveal: bool) -> dict[str, Any] | None:
    if row.state not in (State.COMPLETED, State.FAILED):
        return None
    stored = desk.operations.payload(row.pk, PayloadKind.OUTCOME)
    if stored is None:
        return None
    from celery_durable.errors import DurableError, ErrorPlaceholder

    try:
        outcome = desk.runtime.codec.decode_either(stored.codec, stored.data, "the outcome")
    except DurableError as error:
        return {"kind": "unreadable", "message": str(error)}
    if isinstance(outcome, BaseException):
        name = outcome.__dict__.get("original") if isinstance(outcome, ErrorPlaceholder) else None
        found = {"kind": "error", "type": name or type_name(type(outcome))}
        return {**found, "message": str(outcome)} if reveal else found
    if "value" in outcome:
        return {"kind": "value", "value": plain(outcome["value"])} if reveal else {"kind": "value"}
    return {"kind": "value", "content_type": outcome["content_type"]}


def _arguments(desk: Desk, row: Execution) -> dict[str, Any] | None:
    from celery_durable.messaging import envelope as envelopes

    stored = desk.operations.payload(row.pk, PayloadKind.ENVELOPE)
    if stored is None:
        return None
    message = envelopes.unpack(stored, desk.runtime.envelope_codec)
    from celery_durable.errors import PayloadError

    if message["content_type"] == "application/json":
        try:
            args, kwargs, _ = envelopes.accepted_body(desk.app, message)
            return {"args": plain(args), "kwargs": plain(kwargs)}
        except (PayloadError, ValueError, TypeError) as error:
            return {"unreadable": str(error)}
    # Other serializers may run code: what the publisher wrote for people will do.
    return {"args": message["headers"].get("argsrepr"), "kwargs": message["headers"].get("kwargsrepr")}
