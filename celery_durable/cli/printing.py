"""An execution as text: facts, table of steps, histories, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery_durable.store.records import State

from .plain_text import as_json_text, clean
from .rendering import STATE_STYLES, duration, moment, print_table, words, write

if TYPE_CHECKING:
    from rich.console import Console

    from celery_durable.journal.timeline import Event, RecordedStep

    from .portrait import Portrait

__all__ = ["print_portrait"]

_HIDDEN = "hidden (--reveal)"
#: What --value and --run mean, by outcome.
_CHOICES = {
    "in doubt": ("it happened, and this is its result", "it did not happen: run it"),
    "conflict": ("both are the same: continue with this result", "this is another one: run it too"),
}


def print_portrait(console: Console, portrait: Portrait, command: str) -> None:
    """Print an execution.

    :param command: how the reader calls us.
    """
    row = portrait.execution
    write(console, words(f"Execution {row.id}", style="bold"))
    for label, value in _facts(portrait):
        lines = value.split("\n")
        line = words(f"  {label:<12}")
        line.append(clean(lines[0]), style=STATE_STYLES.get(value, "") if label == "state" else "")
        write(console, line)
        for more in lines[1:]:
            write(console, words(f"  {'':<12}{more}"))
    steps = portrait.timeline.steps
    if steps or portrait.timeline.waits:
        write(console, "")
        _print_steps(console, portrait)
    for step in steps:
        if not step.plain or (portrait.reveal and step.payload is not None):
            _print_history(console, portrait, step)
    for text in _advice(portrait, command):
        write(console, words(text))


def _facts(portrait: Portrait) -> Iterator[tuple[str, str]]:
    row = portrait.execution
    yield "task", row.task
    yield "namespace", row.namespace
    yield "state", row.state.value
    if portrait.reason:
        yield "why", portrait.reason
    if row.state is State.RUNNING:
        yield "owner", f"{row.owner}, until {moment(row.lease_until)}"
    for one in portrait.promises:
        expires = "" if one.deadline is None else f", expires {moment(one.deadline)}"
        what = f"promise {one.name} ({one.known_as}" if one.child is None else f"child {one.name} ({one.child}"
        yield "waits for", f"{what}{expires})"
    if row.state is State.SUSPENDED and row.wake_at is not None:
        yield "continues", moment(row.wake_at)
    yield "created", moment(row.created_at)
    yield "updated", moment(row.updated_at)
    if row.pruned_at is not None:
        yield "pruned", f"{moment(row.pruned_at)}: its journal, arguments and result were removed"
    yield "take-overs", str(row.attempts)
    yield "retries", str(row.retries)
    if portrait.outcome is not None:
        yield "outcome", _outcome(portrait.outcome)
    if portrait.arguments is not None:
        yield "args", _json(portrait.arguments["args"])
        yield "kwargs", _json(portrait.arguments["kwargs"])
    if portrait.timeline.patches:
        yield "patches", ", ".join(portrait.timeline.patches)
    for name, event in portrait.timeline.decisions:
        yield "decided", f"{moment(event.at)}, of {name}: {event.text}"
    if len(portrait.generations) > 1:
        yield "generation", f"{portrait.generation} of {', '.join(map(str, portrait.generations))}"
        for number, why in portrait.generations.items():
            if why is not None:
                yield f"  {number} ended", why


def _outcome(outcome: dict[str, Any]) -> str:
    if outcome["kind"] == "error":
        return f"{outcome['type']}: {outcome.get('message', _HIDDEN)}"
    if outcome["kind"] == "unreadable":
        return str(outcome["message"])
    return _json(outcome["value"]) if "value" in outcome else _HIDDEN


def _print_steps(console: Console, portrait: Portrait) -> None:
    from celery_durable.journal.timeline import place_key

    rows = []
    for step in portrait.timeline.steps:
        key = "" if step.key is None else step.key.hex()
        # Whoever reads this in a terminal recognises a key; the whole of it stands where it is needed.
        shown = f"{key[:12]}…" if key and console.is_terminal else key
        took = duration(None if step.duration_us is None else step.duration_us / 1000)
        rows.append((step.position, step.name, step.effect or "", step.outcome.value, str(step.attempts), took, shown))
    for wait in portrait.timeline.waits:
        until = f", until {moment(wait.until)}" if wait.until is not None else ""
        shown = wait.kind if wait.name == wait.kind else f"{wait.kind} {wait.name}"
        rows.append((wait.position, f"{shown}{until}", "", wait.outcome, "", "", ""))
    for scope in portrait.timeline.scopes:
        branches = f"{scope.branches} branch{'' if scope.branches == 1 else 'es'}"
        rows.append((scope.position, f"parallel, {branches}", "", "ended" if scope.ended else "open", "", "", ""))
    rows.sort(key=lambda r: place_key(r[0]))
    columns = ("position", "step", "effect", "outcome", "tries", "duration", "key")
    print_table(console, columns, rows, numbers=("tries", "duration"), folds=("step",))


def _print_history(console: Console, portrait: Portrait, step: RecordedStep) -> None:
    write(console, "")
    write(console, words(f"{step.position}  {step.name}", style="bold"))
    for event in step.events:
        audit = event.kind == "audit"
        line = f"  {moment(event.at, 3)}  {f'audit: {event.text}' if audit else f'{event.kind}, try {event.attempt}'}"
        if event.duration_us is not None and not audit:
            line += f", after {duration(event.duration_us / 1000)}"
        if portrait.reveal:
            content = _details(event) if audit else portrait.read(event.payload)
            if content is not None:
                line += f"  {_json(content)}"
        write(console, words(line))


def _details(event: Event) -> dict[str, Any] | None:
    """What an audit says beyond its text; the facts above show the rest."""
    said = event.details
    if "then" in said:
        return {"then": said["then"], "now": said.get("now")}
    if said.get("message"):
        return {"raised": f"{said.get('error')}: {said['message']}"}
    return {"decision": said["decision"]} if "raised" in str(said.get("decision")) else None


def _advice(portrait: Portrait, command: str) -> Iterator[str]:
    row = portrait.execution
    for step in portrait.doubts:
        yield ""
        yield f"Step {step.name!r} at position {step.position} waits for you: {step.doubt}."
        if step.key is not None:
            yield f"Look for its idempotency key on the remote side: {step.key.hex()}"
        if step.rival is not None:
            generation, key = step.rival
            yield f"In generation {generation} it had this one: {key}"
        resolve = f"  {command} resolve {row.id} {step.position}"
        same, other = _CHOICES[step.outcome]
        yield f"{resolve} --value JSON    {same}"
        yield f"{resolve} --run           {other}"
        yield f"{resolve} --fail          raise AmbiguousEffect in the body"
    if row.state is State.QUARANTINED:
        yield ""
        yield f"When the cause is fixed:  {command} resume {row.id}"


def _json(value: Any) -> str:
    return as_json_text(value)
