"""A stored message as a new call: the same task, arguments and options under another id."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from kombu import serialization

from celery_durable.children.reports import DELIVER, REJECT
from celery_durable.codec.refusal import understood
from celery_durable.errors import PayloadError
from celery_durable.messaging import envelope as envelopes

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["as_new_call"]

#: Options by which the signatures of a canvas refer to executions and groups.
_REFERENCES: Final = ("task_id", "group_id", "root_id", "parent_id")
#: Options by which a signature belongs to the group or chord around it.
_MEMBERSHIP: Final = ("chord", "group_id", "group_index")


def as_new_call(app: Celery, envelope: Mapping[str, Any], new_id: str, *, callbacks: bool) -> dict[str, Any]:
    """The message of a new execution.

    What hangs behind the call (links, the rest of its chain) hangs behind the new one, under ids of its own; but it is
    no member of a chord or group any more, which counts other calls.

    :param callbacks: False: nothing hangs behind it.
    :raises PayloadError: when the message cannot be read in this process.
    """
    headers = dict(envelope["headers"])
    old_id = headers["id"]
    try:
        args, kwargs, embed = envelopes.accepted_body(app, envelope)
    except PayloadError as error:
        raise PayloadError(
            f"the message of execution {old_id} cannot be read here: {error.message} Do this in a process that accepts "
            "its serializer and has its classes."
        ) from error
    rename = _renaming(old_id, headers.get("root_id"), new_id)
    hanging: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    if callbacks and embed:
        with understood(f"the links and the chain of execution {old_id}"):
            for kind in ("callbacks", "errbacks", "chain"):
                hanging[kind] = _renamed(embed.get(kind), rename)
            for signature in hanging["chain"] or ():
                for option in _MEMBERSHIP:
                    signature["options"].pop(option, None)
    headers.update(
        {
            "id": new_id,
            "root_id": new_id,
            "parent_id": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "expires": None,
            envelopes.RERUN_HEADER: old_id,
        }
    )
    # It may be somebody's child; its parent goes by what becomes of the old one.
    headers.pop(envelopes.CHILD_HEADER, None)
    # As it was, which is a form that the application accepts, or the body would not have been read.
    serializer = envelopes.serializer_of(envelope["content_type"])
    return envelopes.build(
        headers,
        {**envelope["properties"], "correlation_id": new_id},
        serialization.dumps((args, kwargs, hanging), serializer=serializer),
        serializer,
        envelope["compression"],
        envelope["route"],
    )


def _renaming(old_id: str, old_root: str | None, new_id: str) -> Callable[[str], str]:
    """New names for the ids of a canvas; equal for equal ones, for its parts refer to each other."""

    def rename(old: str) -> str:
        if old in (old_id, old_root):
            return new_id
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"celery_durable:{new_id}:{old}"))

    return rename


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """Signatures, however deep they are nested, with other ids; a ``durable_id`` stays what its caller chose.

    What would notify a parent of its child's end notifies nobody: no promise has the new id.
    """
    if isinstance(value, (list, tuple)):
        return [_renamed(item, rename) for item in value]
    if not isinstance(value, Mapping):
        return value
    made = {key: _renamed(item, rename) for key, item in value.items()}
    options = made.get("options")
    if "task" in made and isinstance(options, dict):
        if made["task"] in (DELIVER, REJECT):
            made["kwargs"]["promise"] = rename(made["kwargs"]["promise"])
        (options.get("headers") or {}).pop(envelopes.CHILD_HEADER, None)
        for name in _REFERENCES:
            if options.get(name):
                options[name] = rename(options[name])
        if options.get("durable_id"):
            options["task_id"] = options["durable_id"]
    return made
