"""Child tasks as Celery knows them: how a signature becomes messages, and how the end of a task that is not durable is
reported to its parent.

A durable task settles its parent's promise itself when it ends. Any other one gets a link and an errback, which send a
task of this library to where the parent runs (see :mod:`.reports`). Every task of the child has a header that names the
promise, because it may be revoked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.canvas import (  # type: ignore[attr-defined]
    _chain,
    _chord,
    chunks,
    group,
    maybe_signature,
)

from celery_durable.common.faults import reached
from celery_durable.errors import ConfigurationError
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.after_commit import AwaitingCommit, send_committed
from celery_durable.messaging.joining import captured, storable
from celery_durable.messaging.routing import route_of
from celery_durable.messaging.stash import Stash
from celery_durable.messaging.tasks import is_durable
from celery_durable.runtime import Runtime
from celery_durable.store.outbox import check, new_pks
from celery_durable.store.records import NewChild, NewPromise, Offspring, Published

from .here import Ended, run_here
from .members import Member, check_unnamed
from .reports import DELIVER, REJECT

if TYPE_CHECKING:
    from celery import Celery


__all__ = ["Children", "Launch"]


class Launch(NamedTuple):
    """Children that are about to be recorded, and sent after that."""

    offspring: Offspring
    waiting: list[AwaitingCommit]
    #: Of each child: the ids of all its tasks.
    tasks: list[list[str]]


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
        check_unnamed(signature)
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


class Children:
    """Starts, and cancels, the children of one delivery.

    :param cancel: cancels tasks: ``cancel(app, ids, reason)``.
    """

    def __init__(
        self, app: Celery, runtime: Runtime, request: Any, *, cancel: Callable[[Celery, Iterable[str], str], None]
    ) -> None:
        self.app = app
        self._cancel = cancel
        self._runtime = runtime
        self._request = request

    def prepare(self, members: Sequence[Member]) -> Launch:
        """What is to be recorded of children. Neither broker nor result backend hear of it.

        In eager mode nothing is to be sent.

        :raises ConfigurationError: for a signature that cannot be sent.
        """
        settings = self._runtime.settings
        if self._request.is_eager:
            return Launch(Offspring(settings.namespace, settings.lease_ms, ()), [], [[one.task_id] for one in members])
        children, waiting, tasks = [], [], []
        now = time.monotonic()
        for member in members:
            ids, found = self._capture(member)
            pairs = list(zip(new_pks(len(found)), found, strict=True))
            promise = NewPromise(member.id, member.name, timeout_ms=member.timeout_ms)
            children.append(NewChild(promise, tuple((pk, row) for pk, (_, row) in pairs)))
            waiting += [
                AwaitingCommit(self.app, stash, pk, isinstance(row, Published), now) for pk, (stash, row) in pairs
            ]
            tasks.append(ids)
        return Launch(Offspring(settings.namespace, settings.lease_ms, tuple(children)), waiting, tasks)

    def _capture(self, member: Member) -> tuple[list[str], list[tuple[Stash, Any]]]:
        request = self._request
        marked = _Marked(self.app, member, route_of(self.app, request))
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
        self._cancel(self.app, ids, reason)
