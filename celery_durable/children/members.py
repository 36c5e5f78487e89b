"""How a child task is called: its signature, checked; its name, id and fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from celery.canvas import Signature, chunks, group

from celery_durable.errors import ConfigurationError
from celery_durable.identity import child_of, child_print
from celery_durable.messaging.signature import is_empty_chain
from celery_durable.runtime.proxies import behind

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Member", "check_signature", "check_unnamed", "fingerprint", "members_of", "name_of"]


class Member(NamedTuple):
    """One child of a call."""

    signature: Any
    #: Its name in the journal.
    name: str
    #: Of its promise, and without dashes that of the task. Once it is in the journal, that one counts.
    id: str
    fingerprint: bytes
    #: Until its end; None for ever.
    timeout_ms: int | None = None
    #: Where it is called: a branch, and how many earlier calls of this name that one had.
    lane: str = ""
    number: int = 0

    @property
    def of(self) -> tuple[str, str, int]:
        """What distinguishes it from all others of its parent, in every run of the body."""
        return self.lane, self.name, self.number

    @property
    def task_id(self) -> str:
        return child_of(self.id)


def name_of(signature: Any) -> str:
    """What the journal calls a child, where the body does not say."""
    task = str(signature["task"])
    return task.removeprefix("celery.") if signature.get("subtask_type") else task


def members_of(signature: Any) -> list[Any] | None:
    """The tasks of a group; None for anything else."""
    if isinstance(signature, chunks):
        signature = signature.group()
    return list(signature.tasks) if isinstance(signature, group) else None


def form_of(signature: Any) -> Any:
    """What is called, in plain data; how (options) does not count."""
    if isinstance(signature, (list, tuple)):
        return [form_of(one) for one in signature]
    if not isinstance(signature, dict):
        return signature
    if "task" not in signature or "args" not in signature:
        return {key: form_of(value) for key, value in signature.items()}
    kwargs = {str(key): form_of(value) for key, value in signature["kwargs"].items()}
    return [signature["task"], form_of(signature["args"]), kwargs]


def fingerprint(name: str, signature: Any) -> bytes:
    """The fingerprint of a call of a child."""
    return child_print(name, form_of(signature))


def check_signature(app: Celery, signature: Any, what: str) -> Any:
    """A signature that can be a child.

    :raises ConfigurationError: for anything else.
    """
    if not isinstance(signature, Signature):
        raise ConfigurationError(
            f"{what} takes signatures, not {signature!r}: task.s(1, 2) for task.delay(1, 2), or chain(...), "
            "group(...), chord(...)."
        )
    if is_empty_chain(signature):
        raise ConfigurationError(f"{what} of an empty chain: there is nothing to wait for.")
    check_unnamed(signature)
    theirs: Any = signature._app  # type: ignore[attr-defined]
    if theirs is not None and behind(theirs) is not app:
        raise ConfigurationError(
            f"{what}: {name_of(signature)} belongs to another Celery application than the task that calls it. To "
            f"send it by this one's broker, name it: app.signature({str(signature['task'])!r}, (...))."
        )
    return signature


def check_unnamed(signature: Any) -> None:
    if signature.options.get("durable_id"):
        raise ConfigurationError(
            f"the child task {signature['task']} has a durable_id. A child's id is derived from its parent, so "
            "that it is started once; leave the durable_id out."
        )
