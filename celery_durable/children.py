"""Child tasks as Celery knows them: how a signature becomes messages, and how the end of a task that is not durable
finds its way back.

A durable task keeps its parent's promise itself, when it ends. Any other one gets a link and an errback, which send a
task of ours to where the parent runs (see :mod:`.delivery`). Every task of the child has a header that names the
promise, for it may be revoked.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import Task, states
from celery.canvas import (  # type: ignore[attr-defined]
    Signature,
    _chain,
    _chord,
    chunks,
    group,
    maybe_signature,
)
from celery.exceptions import NotRegistered
from celery.result import allow_join_result

from . import envelope as envelopes
from .cancelling import cancel_all
from .coroutines import run_to_end
from .delivery import DELIVER, REJECT
from .errors import ConfigurationError
from .faults import reached
from .identity import child_of, child_print
from .outbox import Waiting, captured, send_committed, storable
from .publish import Stash, is_durable
from .signature import is_empty_chain
from .store.children import NewChild, Offspring
from .store.outbox import Published, check, new_pks
from .store.records import NewPromise

if TYPE_CHECKING:
    from celery import Celery

    from .runtime import Runtime

__all__ = ["Children", "Ended", "Launch", "Member", "call_here", "members_of", "name_of"]


class Member(NamedTuple):
    """One child of a call."""

    signature: Any
    #: What the journal calls it.
    name: str
    #: Of its promise, and without dashes that of the task.
    id: str
    fingerprint: bytes
    #: Until its end; None for ever.
    timeout_ms: int | None = None
    #: Where it is called: a branch, and how many earlier calls of this name that one had.
    lane: str = ""
    number: int = 0

    @property
    def task_id(self) -> str:
        return child_of(self.id)


class Launch(NamedTuple):
    """Children that are about to be recorded, and sent after that."""

    offspring: Offspring
    waiting: list[Waiting]
    #: Of each child: the ids of all its tasks.
    tasks: list[list[str]]


class Ended(NamedTuple):
    """What became of a child that ran here and now."""

    value: Any = None
    error: BaseException | None = None
    cancelled: bool = False


# -- signatures ---------------------------------------------------------------------------------------------------


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
    _check_id(signature)
    theirs: Any = signature._app  # type: ignore[attr-defined]
    if theirs is not None and getattr(theirs, "_get_current_object", lambda: theirs)() is not app:
        raise ConfigurationError(
            f"{what}: {name_of(signature)} belongs to another Celery application than the task that calls it. To "
            f"send it by this one's broker, name it: app.signature({str(signature['task'])!r}, (...))."
        )
    return signature


def _check_id(signature: Any) -> None:
    if signature.options.get("durable_id"):
        raise ConfigurationError(
            f"the child task {signature['task']} has a durable_id. A child's id is derived from its parent, so "
            "that it is started once; leave the durable_id out."
        )


class _Marked:
    """Makes the copy of a signature that is sent."""

    def __init__(self, app: Celery, member: Member, route: dict[str, str]) -> None:
        self._app = app
        self._member = member
        self._route = route
        #: Ids of its tasks.
        self.ids: list[str] = []

    def whole(self) -> Any:
        return self._copy(self._member.signature, True)

    def _copy(self, given: Any, whole: bool) -> Any:
        """
        :param whole: its value is the child's.
        """
        signature: Any = maybe_signature(given, app=self._app)
        if isinstance(signature, chunks):
            signature = signature.group()
        signature = signature.clone()
        signature._app = self._app
        if isinstance(signature, _chain):
            tasks = list(signature.tasks)
            kept = [self._copy(one, whole and number == len(tasks) - 1) for number, one in enumerate(tasks)]
            signature.kwargs["tasks"] = kept
            return signature
        if isinstance(signature, _chord):
            header = signature.kwargs["header"]
            many = header.tasks if isinstance(header, group) else header
            signature.kwargs["header"] = group([self._copy(one, False) for one in many], app=self._app)
            signature.kwargs["body"] = self._copy(signature.kwargs["body"], whole)
            return signature
        if isinstance(signature, group):
            signature.kwargs["tasks"] = [self._copy(one, False) for one in signature.tasks]
            return _chain(signature, self._collector(), app=self._app) if whole else signature
        return self._leaf(signature, whole)

    def _leaf(self, signature: Any, whole: bool) -> Any:
        _check_id(signature)
        self._identify(signature, whole)
        headers = {**(signature.options.get("headers") or {}), envelopes.CHILD_HEADER: self._member.id}
        signature.options["headers"] = headers
        durable = is_durable(self._app, signature["task"])
        if whole and not durable:
            signature.link(self._ours(DELIVER))
        if not (whole and durable):
            signature.link_error(self._ours(REJECT))
        return signature

    def _collector(self) -> Any:
        """Takes the results of a group that is the last of a chain."""
        signature = self._ours(DELIVER)
        self._identify(signature, True)
        signature.link_error(self._ours(REJECT))
        return signature

    def _identify(self, signature: Any, whole: bool) -> None:
        task_id = self._member.task_id
        if not whole:
            task_id = str(uuid.uuid5(uuid.UUID(task_id), str(len(self.ids))))
        signature.options["task_id"] = task_id
        self.ids.append(task_id)

    def _ours(self, name: str) -> Any:
        kwargs: dict[str, Any] = {"promise": self._member.id}
        if name == REJECT:
            kwargs["route"] = self._route
        return self._app.signature(name, kwargs=kwargs, options=dict(self._route))


# -- starting -----------------------------------------------------------------------------------------------------


def run_here(member: Member) -> Ended:
    """Run a child to its end, here and now."""
    signature = member.signature.clone()
    if not signature.get("subtask_type"):
        signature.options["task_id"] = member.task_id
    # A chain takes the results of its tasks, which are there already.
    with allow_join_result():
        try:
            result = signature.apply()
        except NotRegistered as unknown:
            raise ConfigurationError(
                f"the child {member.name!r} cannot run: no task {unknown!s} is registered in this process. In eager "
                "mode a child runs where its parent does: import the module that defines it."
            ) from None
    if result.state == states.SUCCESS:
        return Ended(result.result)
    if result.state == states.REVOKED:
        return Ended(cancelled=True)
    error = result.result
    if not isinstance(error, Exception):
        error = RuntimeError(f"its run ended without a result, in state {result.state}")
    return Ended(error=error)


def call_here(member: Member) -> Ended:
    """The same for a body that was called directly: a task is called directly, too."""
    signature = member.signature
    if signature.get("subtask_type") or not isinstance(signature.type, Task):
        return run_here(member)
    try:
        value = signature.type(*signature.args, **signature.kwargs)
        return Ended(run_to_end(value) if inspect.iscoroutine(value) else value)
    except Exception as error:
        return Ended(error=error)


class Children:
    """Starts, and cancels, the children of one delivery."""

    def __init__(self, app: Celery, runtime: Runtime, request: Any) -> None:
        self.app = app
        self._runtime = runtime
        self._request = request

    def prepare(self, members: Sequence[Member]) -> Launch:
        """What is to be recorded of children. Neither broker nor result backend hear of it.

        :raises ConfigurationError: for a signature that cannot be sent.
        """
        settings = self._runtime.settings
        children, waiting, tasks = [], [], []
        now = time.monotonic()
        for member in members:
            ids, found = self._capture(member)
            pairs = list(zip(new_pks(len(found)), found, strict=True))
            promise = NewPromise(member.id, member.name, timeout_ms=member.timeout_ms)
            children.append(NewChild(promise, tuple((pk, row) for pk, (_, row) in pairs)))
            waiting += [Waiting(self.app, stash, pk, isinstance(row, Published), now) for pk, (stash, row) in pairs]
            tasks.append(ids)
        return Launch(Offspring(settings.namespace, settings.lease_ms, tuple(children)), waiting, tasks)

    def _capture(self, member: Member) -> tuple[list[str], list[tuple[Stash, Any]]]:
        request = self._request
        marked = _Marked(self.app, member, envelopes.route_of(request))
        signature = marked.whole()
        lineage = {"root_id": request.root_id or request.id, "parent_id": request.id}
        _, stashes = captured(self.app, lambda: signature.apply_async(**lineage))
        if not stashes:
            raise ConfigurationError(f"the child {member.name!r} has no task: there is nothing to wait for.")
        found = storable(self.app, self._runtime, stashes)
        for _, row in found:
            check(row)
        return marked.ids, found

    def send(self, launch: Launch) -> None:
        """Send what is recorded and committed. What cannot be sent now is left to recovery."""
        send_committed(launch.waiting)
        reached("child.after_send", str(self._request.id))

    def run(self, member: Member) -> Ended:
        """Run a child to its end, here and now (eager mode)."""
        return run_here(member)

    def cancel(self, ids: Iterable[str], reason: str) -> None:
        """Cancel tasks that are not needed any more, with the children that they wait for."""
        cancel_all(self.app, ids, reason)
