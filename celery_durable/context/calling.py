"""Child tasks: the part of :class:`~celery_durable.DurableContext` that starts them and waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from celery.canvas import Signature

from celery_durable.children.call import ChildCall
from celery_durable.children.members import Member, check_signature, members_of, name_of
from celery_durable.children.members import fingerprint as call_fingerprint
from celery_durable.children.starting import Children
from celery_durable.common.arguments import Duration, check_count, check_name, milliseconds
from celery_durable.errors import ConfigurationError
from celery_durable.identity import wait_print
from celery_durable.waits.tokens import Tokens

from .base import BodyContext

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CallingContext"]


class CallingContext(BodyContext):
    """Child tasks. In ``async def`` code they are awaited: ``await self.durable.call(...)``."""

    _children: Children | None
    _tokens: Tokens

    def call(self, signature: Signature, *, timeout: Duration | None = None, name: str | None = None) -> Any:
        """Run a child task, and continue with its result. The wait holds no worker.

        The signature may be that of any task, durable or not, a chain, or a chord. A group gives the list of its
        results.

        :param timeout: seconds, or a timedelta, from the start of the child; None: no limit.
        :param name: its name in the journal, 1 to 200 characters; default: the task's name. The child's id is derived
            from it.
        :returns: what the task returned; in ``async def`` code an awaitable of it.
        :raises ChildFailed: the task failed; its ``error`` is the exception.
        :raises ChildCancelled: it was revoked or cancelled.
        :raises ChildTimeout: it had not ended in time, and was cancelled.
        :raises ConfigurationError: for anything that cannot be called.
        :raises FingerprintError: for an argument without a canonical form.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        checked = check_signature(self._app(), signature, "call()")
        several = members_of(checked)
        if several is not None:
            if not several:
                raise ConfigurationError("call() of an empty group: there is nothing to wait for.")
            return self._wait(
                ChildCall([self._member(one, "call()", timeout, name) for one in several], starter=self._starter())
            )
        return self._wait(
            ChildCall([self._member(checked, "call()", timeout, name)], single=True, starter=self._starter())
        )

    def gather(
        self,
        *signatures: Signature,
        concurrency: int | None = None,
        until: Literal["all", "first"] | int = "all",
        tolerate: int = 0,
        timeout: Duration | None = None,
    ) -> Any:
        """Run several child tasks at the same time.

        :param signatures: as for :meth:`call`.
        :param concurrency: how many run at the same time; None: all.
        :param until: ``"all"``: continue when all have ended. ``"first"``, or a number: continue when that many have
            succeeded; the others are cancelled.
        :param tolerate: how many may fail.
        :param timeout: seconds, or a timedelta, for each one from its start; None: no limit.
        :returns: the list of their results, in the order of the signatures. A task that failed has its
            :class:`ChildFailed` in the list, one that was no longer needed a :class:`ChildCancelled`. In ``async def``
            code an awaitable of the list.
        :raises ChildFailed: when more have failed than ``tolerate``, or too few can still succeed: the error of the
            task whose failure decided it.
        :raises ConfigurationError, FingerprintError: as :meth:`call`, and for numbers out of range.
        """
        needed = _until(until, len(signatures))
        if concurrency is not None:
            check_count(concurrency, "gather(concurrency=", 1)
        check_count(tolerate, "gather(tolerate=", 0)
        app = self._app()
        checked = [check_signature(app, one, "gather()") for one in signatures]
        for one in checked:
            if members_of(one) is not None:
                raise ConfigurationError("gather() takes no groups: pass the tasks of the group, gather(*group.tasks).")
        members = [self._member(one, "gather()", timeout, None) for one in checked]
        return self._wait(
            ChildCall(members, until=needed, tolerate=tolerate, concurrency=concurrency, starter=self._starter())
        )

    def _member(self, signature: Any, what: str, timeout: Duration | None, name: str | None) -> Member:
        """A child, with the id that it gets if it is started now."""
        signature = check_signature(self._app(), signature, what)
        name = name_of(signature) if name is None else name
        check_name(name, "a child's name")
        timeout_ms = None if timeout is None else milliseconds(timeout, f"{what[:-1]}timeout=)", least=1)
        scope = self._here()
        number = scope.occurrence(wait_print("call", name))
        known = self._child_id(scope.lane, name, number)
        return Member(signature, name, known, call_fingerprint(name, signature), timeout_ms, scope.lane, number)

    def _starter(self) -> Children | None:
        """Starts the children; None where there is no journal."""
        return self._children

    def _app(self) -> Celery:
        starter = self._starter()
        assert starter is not None
        return starter.app

    def _child_id(self, lane: str, name: str, number: int) -> str:
        run = self._run
        return self._tokens.child_id(run.namespace, run.execution_id, lane, name, number)


def _until(until: object, total: int) -> int | None:
    if until == "all":
        return None
    needed = 1 if until == "first" else until
    if isinstance(needed, bool) or not isinstance(needed, int) or not 1 <= needed <= total:
        raise ConfigurationError(
            f"gather(until={until!r}) of {total} task(s): it is 'all', 'first', or how many must "
            f"succeed, at most {total}."
        )
    return needed
